// SPDX-License-Identifier: Apache-2.0
// What the CPU and the CUDA binding of contrastive_distance share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "common/layout.h"
#include "contrastive_distance/contrastive_distance.h"

namespace scrd::contrastive {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/// The maps of one scale, with their values in one order; copied only where they are not.
class Triple {
 public:
  Triple(const Tensor& clean, const Tensor* noisy, const Tensor& student) {
    maps_ = {student, clean};
    if (noisy != nullptr) maps_.push_back(*noisy);
    for (const Tensor& map : maps_) check(map);
    rows_ = is_channels_last(student);
    for (Tensor& map : maps_) {
      if (!(rows_ ? is_dense(map, {1, 3, 2}) : is_dense(map, {3, 2, 1}))) {
        map = torch::stable::contiguous(map, format());
      }
    }
  }

  ScalarType type() const { return student().scalar_type(); }
  const Tensor& student() const { return maps_[0]; }

  /// A gradient with respect to one of the maps, not yet filled: as the student lies, dense.
  Tensor allocate_gradient() const {
    return torch::stable::empty(student().sizes(), type(), std::nullopt, student().device(), std::nullopt,
                                format());
  }

  Maps maps() const {
    const Tensor& clean = maps_[1];
    const Tensor* noisy = maps_.size() > 2 ? &maps_[2] : nullptr;
    return {clean.const_data_ptr(),
            noisy == nullptr ? nullptr : noisy->const_data_ptr(),
            student().const_data_ptr(),
            student().size(0),
            student().size(1) * student().size(2) * student().size(3),
            clean.stride(0),
            noisy == nullptr ? 0 : noisy->stride(0),
            student().stride(0)};
  }

 private:
  /// Users' mistakes were found in Python; this protects memory.
  void check(const Tensor& map) const {
    STD_TORCH_CHECK(map.dim() == 4, "maps must be [N, C, H, W]");
    for (int axis = 0; axis < 4; ++axis) {
      STD_TORCH_CHECK(map.size(axis) == student().size(axis), "maps of a scale must have one shape");
    }
    STD_TORCH_CHECK(map.scalar_type() == type(), "maps of a scale must have one dtype");
    STD_TORCH_CHECK(map.device() == student().device(), "maps must be on one device");
  }

  MemoryFormat format() const { return rows_ ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous; }

  std::vector<Tensor> maps_;  // student, clean, noisy
  bool rows_ = false;
};

/// All scales of a batch.
class Inputs {
 public:
  Inputs(const std::vector<Tensor>& clean, const std::vector<Tensor>& noisy,
         const std::vector<Tensor>& student)
      : has_noisy_(!noisy.empty()) {
    STD_TORCH_CHECK(!student.empty() && clean.size() == student.size() &&
                        (noisy.empty() || noisy.size() == student.size()),
                    "lists must be of one length, at least 1");
    for (size_t k = 0; k < student.size(); ++k) {
      triples_.emplace_back(clean[k], noisy.empty() ? nullptr : &noisy[k], student[k]);
      STD_TORCH_CHECK(triples_[k].student().size(0) == samples() && accumulator(k) == accumulator(),
                      "scales must have one batch size, and all or none of them float64");
      scales.push_back(triples_[k].maps());
    }
  }

  std::vector<Maps> scales;

  int64_t samples() const { return triples_[0].student().size(0); }
  int64_t count() const { return static_cast<int64_t>(scales.size()); }
  bool has_noisy() const { return has_noisy_; }
  const Triple& scale(size_t k) const { return triples_[k]; }
  ScalarType type(size_t k) const { return triples_[k].type(); }
  ScalarType accumulator(size_t k = 0) const {
    return type(k) == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  /// Not yet filled, in the accumulator's type.
  Tensor allocate(const std::vector<int64_t>& shape) const {
    return torch::stable::new_empty(scale(0).student(), shape, accumulator());
  }
  Tensor allocate_distances(bool wanted = true) const {
    return wanted ? allocate({samples(), count()}) : allocate({0});
  }

  /// Numbers of each sample and scale, dense.
  Tensor checked(const Tensor& numbers, const std::vector<int64_t>& shape) const {
    STD_TORCH_CHECK(numbers.dim() == static_cast<int64_t>(shape.size()) &&
                        numbers.scalar_type() == accumulator() &&
                        numbers.device() == scale(0).student().device(),
                    "gradients and sums must be as the operator gave them");
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      STD_TORCH_CHECK(numbers.size(static_cast<int64_t>(axis)) == shape[axis], "of another batch");
    }
    return torch::stable::contiguous(numbers);
  }

 private:
  bool has_noisy_;
  std::vector<Triple> triples_;
};

}  // namespace scrd::contrastive
