// SPDX-License-Identifier: Apache-2.0
// What the CPU and the CUDA binding of synthesize_anomalies share.
#pragma once

#include <optional>

#include "simplex_noise/simplex_noise_binding.h"
#include "synthesize_anomalies/synthesize_anomalies.h"

namespace scrd::anomalies {

using simplex::Fractal;
using simplex::ScalarType;
using simplex::Tensor;
using simplex::Variant;

/// The operator's arguments as kernels take them. Users' mistakes were found in Python; this protects memory.
struct Task {
  Tensor boxes, seeds;
  std::optional<Tensor> std;
  float strength;
  Variant variant;
  Fractal fractal;

  const float* std_data() const { return std ? std->const_data_ptr<float>() : nullptr; }
};

inline void check(const Tensor& images, const Tensor& boxes, const Tensor& seeds,
                  const std::optional<Tensor>& std) {
  STD_TORCH_CHECK(images.dim() == 4, "images must be [N, C, H, W]");
  const int64_t n = images.size(0), c = images.size(1);
  const double values =
      static_cast<double>(c) * static_cast<double>(images.size(2)) * static_cast<double>(images.size(3));
  STD_TORCH_CHECK(values < 2147483648.0, "an image must have fewer than 2^31 values");
  STD_TORCH_CHECK(
      boxes.scalar_type() == ScalarType::Int && boxes.dim() == 2 && boxes.size(0) == n && boxes.size(1) == 4,
      "boxes must be int32 [N, 4]");
  STD_TORCH_CHECK(seeds.scalar_type() == ScalarType::Long && seeds.dim() == 1 && seeds.size(0) == n,
                  "seeds must be int64 [N]");
  STD_TORCH_CHECK(!std || (std->scalar_type() == ScalarType::Float && std->dim() == 1 && std->size(0) == c),
                  "std must be float32 [C]");
  STD_TORCH_CHECK(boxes.device() == images.device() && seeds.device() == images.device() &&
                      (!std || std->device() == images.device()),
                  "images, boxes, seeds and std must be on one device");
}

inline Task make_task(const Tensor& images, const Tensor& boxes, const Tensor& seeds, double strength,
                      const std::optional<Tensor>& std, const Fractal& fractal, const std::string& variant) {
  check(images, boxes, seeds, std);
  std::optional<Tensor> dense_std;
  if (std) dense_std = torch::stable::contiguous(*std);
  return {torch::stable::contiguous(boxes), torch::stable::contiguous(seeds), dense_std,
          static_cast<float>(strength),     simplex::parse_variant(variant),  fractal};
}

/// `T` is the kernels' type for the tensor's elements.
template <typename T>
Images<T> view_images(const Tensor& images) {
  Images<T> view{static_cast<T*>(images.mutable_data_ptr()), {}, {}};
  for (int axis = 0; axis < 4; ++axis) {
    view.sizes[axis] = images.size(axis);
    view.strides[axis] = images.stride(axis);
  }
  return view;
}

}  // namespace scrd::anomalies
