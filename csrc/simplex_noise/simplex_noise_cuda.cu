// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "common/cuda.h"
#include "simplex_noise/simplex_noise_binding.h"
#include "simplex_noise/simplex_noise_kernels.cuh"

namespace scrd::simplex {
namespace {

Tensor simplex_noise(const Tensor& seeds, const std::vector<int64_t>& size, int64_t octaves,
                     double persistence, double frequency, const std::string& variant) {
  const CudaLaunch cuda(seeds);
  const Variant parsed = parse_variant(variant);
  Tensor out = allocate(seeds, size);
  if (out.numel() == 0) return out;
  const Tensor dense = torch::stable::contiguous(seeds);
  launch_simplex_noise(parsed, dense.const_data_ptr<int64_t>(), out.mutable_data_ptr<float>(), out.size(0),
                       size[0], size[1], size[2], {octaves, persistence, frequency}, cuda.stream());
  cuda.check();
  return out;
}

}  // namespace
}  // namespace scrd::simplex

STABLE_TORCH_LIBRARY_IMPL(scrd_fast, CUDA, m) {
  m.impl("simplex_noise", TORCH_BOX(&scrd::simplex::simplex_noise));
}
