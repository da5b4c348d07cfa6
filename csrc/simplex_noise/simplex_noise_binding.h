// SPDX-License-Identifier: Apache-2.0
// What the bindings of simplex_noise share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <vector>

#include "simplex_noise/simplex_noise.h"

namespace scrd::simplex {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Variant parse_variant(const std::string& name) {
  STD_TORCH_CHECK(name == "opensimplex" || name == "hashed", "variant must be opensimplex or hashed, got ",
                  name);
  return name == "hashed" ? Variant::kHashed : Variant::kOpenSimplex;
}

/// The result, [N, D, H, W], not yet filled. Users' mistakes were found in Python; this protects memory.
inline Tensor allocate(const Tensor& seeds, const std::vector<int64_t>& size) {
  STD_TORCH_CHECK(seeds.dim() == 1 && seeds.scalar_type() == ScalarType::Long, "seeds must be int64 [N]");
  STD_TORCH_CHECK(size.size() == 3, "size must be (D, H, W)");
  double elements = 1;
  for (const int64_t length : size) {
    STD_TORCH_CHECK(length > 0, "size must be positive");
    elements *= static_cast<double>(length);
  }
  STD_TORCH_CHECK(elements < 2147483648.0, "a sample must have fewer than 2^31 elements");
  return torch::stable::new_empty(seeds, {seeds.size(0), size[0], size[1], size[2]}, ScalarType::Float);
}

}  // namespace scrd::simplex
