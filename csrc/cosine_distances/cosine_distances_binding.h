// SPDX-License-Identifier: Apache-2.0
// What the CPU and the CUDA binding of cosine_distances share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "common/layout.h"
#include "cosine_distances/cosine_distances.h"

namespace scrd::cosine {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_planes(const Tensor& x) {
  return (x.size(3) == 1 || x.stride(3) == 1) && (x.size(2) == 1 || x.stride(2) == x.size(3));
}

inline bool is_rows(const Tensor& x) { return x.size(1) == 1 || x.stride(1) == 1; }

/// A pair of features in one of the two layouts; copied into one only where they are in neither, or in
/// different ones.
class Pair {
 public:
  Pair(const Tensor& teacher, const Tensor& student) : teacher_(teacher), student_(student) {
    check();
    const bool planes = is_planes(teacher) && is_planes(student);
    rows_ = !planes && is_rows(teacher) && is_rows(student);
    if (planes || rows_) return;
    rows_ = is_rows(teacher) || is_rows(student);
    make_dense(rows_);
  }

  /// For gradients: both dense, and channels-last where both already are.
  static Pair dense(const Tensor& teacher, const Tensor& student) {
    Pair pair(teacher, student);
    pair.make_dense(is_channels_last(teacher) && is_channels_last(student));
    return pair;
  }

  ScalarType type() const { return teacher_.scalar_type(); }
  const Tensor& teacher() const { return teacher_; }
  const Tensor& student() const { return student_; }

  Maps maps() const {
    Maps maps{teacher_.const_data_ptr(),
              student_.const_data_ptr(),
              teacher_.size(0),
              teacher_.size(1),
              teacher_.size(2),
              teacher_.size(3),
              {},
              {},
              rows_};
    for (int axis = 0; axis < 4; ++axis) {
      maps.teacher_strides[axis] = teacher_.stride(axis);
      maps.student_strides[axis] = student_.stride(axis);
    }
    return maps;
  }

  ScalarType accumulator() const {
    return type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  /// The distances of this pair, [N, H, W], not yet filled.
  Tensor allocate() const {
    return torch::stable::new_empty(teacher_, {teacher_.size(0), teacher_.size(2), teacher_.size(3)},
                                    accumulator());
  }

  /// Gradients of the distances, dense.
  Tensor checked_grad(const Tensor& grad) const {
    STD_TORCH_CHECK(grad.dim() == 3 && grad.size(0) == teacher_.size(0) && grad.size(1) == teacher_.size(2) &&
                        grad.size(2) == teacher_.size(3) && grad.scalar_type() == accumulator() &&
                        grad.device() == teacher_.device(),
                    "grads must be as the distances");
    return torch::stable::contiguous(grad);
  }

 private:
  /// Users' mistakes were found in Python; this protects memory.
  void check() const {
    STD_TORCH_CHECK(teacher_.dim() == 4 && student_.dim() == 4, "features must be [N, C, H, W]");
    for (int axis = 0; axis < 4; ++axis) {
      STD_TORCH_CHECK(teacher_.size(axis) == student_.size(axis), "teacher and student must have one shape");
    }
    STD_TORCH_CHECK(type() == student_.scalar_type(), "teacher and student must have one dtype");
    STD_TORCH_CHECK(teacher_.device() == student_.device(), "teacher and student must be on one device");
  }

  void make_dense(bool rows) {
    rows_ = rows;
    const MemoryFormat format = rows ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
    teacher_ = torch::stable::contiguous(teacher_, format);
    student_ = torch::stable::contiguous(student_, format);
  }

  Tensor teacher_, student_;
  bool rows_ = false;
};

/// Lists of one length, at least one.
inline void check_lengths(const std::vector<Tensor>& first, const std::vector<Tensor>& second) {
  STD_TORCH_CHECK(!first.empty() && first.size() == second.size(), "lists must be of one length, at least 1");
}

}  // namespace scrd::cosine
