// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/parallel.h"
#include "simplex_noise/simplex_noise.h"
#include "simplex_noise/simplex_noise_binding.h"

namespace scrd::simplex {
namespace {

constexpr int64_t kNanosecondsPerOctave = 250;  // of one element, measured
constexpr int64_t kNanosecondsPerShuffle = 6000;

void fill(const int64_t* seeds, float* out, int64_t samples, int64_t depth, int64_t height, int64_t width,
          const Fractal& fractal) {
  std::vector<uint8_t> permutations(static_cast<size_t>(samples) * kEntries);
  parallel_for(samples, kNanosecondsPerShuffle,
               [&](int64_t n) { build_permutation(seeds[n], permutations.data() + n * kEntries); });
  const int64_t row_cost = kNanosecondsPerOctave * std::max<int64_t>(fractal.octaves, 1) * width;
  parallel_for(samples * depth * height, row_cost, [&](int64_t row) {
    const int64_t h = row % height, d = row / height % depth, n = row / height / depth;
    for (int64_t w = 0; w < width; ++w) {
      out[row * width + w] = fractal_noise(permutations.data() + n * kEntries, fractal, d, h, w);
    }
  });
}

Tensor simplex_noise(const Tensor& seeds, const std::vector<int64_t>& size, int64_t octaves,
                     double persistence, double frequency, const std::string& variant) {
  Tensor out = allocate(seeds, size, variant);
  if (out.numel() == 0) return out;
  const Tensor dense = torch::stable::contiguous(seeds);
  fill(dense.const_data_ptr<int64_t>(), out.mutable_data_ptr<float>(), out.size(0), size[0], size[1], size[2],
       {octaves, persistence, frequency});
  return out;
}

}  // namespace
}  // namespace scrd::simplex

STABLE_TORCH_LIBRARY_IMPL(scrd_fast, CPU, m) {
  m.impl("simplex_noise", TORCH_BOX(&scrd::simplex::simplex_noise));
}
