// SPDX-License-Identifier: Apache-2.0
// What the CPU and the CUDA binding of simplex_noise share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <vector>

namespace scrd::simplex {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/// The result, [N, D, H, W], not yet filled. Users' mistakes were found in Python; this protects memory.
inline Tensor allocate(const Tensor& seeds, const std::vector<int64_t>& size, const std::string& variant) {
  STD_TORCH_CHECK(variant == "opensimplex", "variant must be opensimplex, got ", variant);
  STD_TORCH_CHECK(seeds.dim() == 1 && seeds.scalar_type() == ScalarType::Long, "seeds must be int64 [N]");
  STD_TORCH_CHECK(size.size() == 3, "size must be (D, H, W)");
  return torch::stable::new_empty(seeds, {seeds.size(0), size[0], size[1], size[2]}, ScalarType::Float);
}

}  // namespace scrd::simplex
