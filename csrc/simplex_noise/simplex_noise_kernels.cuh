// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/kernel_prelude.cuh"
#include "simplex_noise/simplex_noise.h"

namespace scrd::simplex {

/// One thread a sample: the shuffle is serial, and a batch has few samples.
static __global__ void permutation_kernel(const int64_t* seeds,   // [samples]
                                          uint8_t* permutations,  // [samples, 256]
                                          int64_t samples) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n < samples) build_permutation(seeds[n], permutations + n * kEntries);
}

/// A thread makes one element of each sample that its block visits; the block shares a sample's permutation.
static __global__ void noise_kernel(const uint8_t* permutations,  // [samples, 256]
                                    float* out,                   // [samples, depth, height, width]
                                    int64_t samples, int64_t depth, int64_t height, int64_t width,
                                    Fractal fractal) {
  __shared__ SharedArray<uint8_t, kEntries> permutation;
  const int64_t elements = depth * height * width;
  const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t n = blockIdx.y; n < samples; n += gridDim.y) {
    __syncthreads();  // the sample before may still be read
    permutation[static_cast<int>(threadIdx.x)] = permutations[n * kEntries + threadIdx.x];
    __syncthreads();
    if (element < elements) {
      const int64_t w = element % width, row = element / width;
      out[n * elements + element] = fractal_noise(permutation.v, fractal, row / height, row % height, w);
    }
  }
}

/// Fills `out`, given scratch memory of samples * 256 bytes. Every size must be positive.
inline void launch_simplex_noise(const int64_t* seeds, uint8_t* permutations, float* out, int64_t samples,
                                 int64_t depth, int64_t height, int64_t width, const Fractal& fractal,
                                 cudaStream_t stream) {
  constexpr int64_t kMaxGridY = 65535, kShuffleBlock = 32;
  const int64_t elements = depth * height * width;
  const dim3 shuffles(static_cast<unsigned>((samples + kShuffleBlock - 1) / kShuffleBlock));
  launch(permutation_kernel, shuffles, dim3(kShuffleBlock), 0, stream, seeds, permutations, samples);
  const dim3 grid(static_cast<unsigned>((elements + kEntries - 1) / kEntries),
                  static_cast<unsigned>(samples < kMaxGridY ? samples : kMaxGridY));
  launch(noise_kernel, grid, dim3(kEntries), 0, stream, static_cast<const uint8_t*>(permutations), out,
         samples, depth, height, width, fractal);
}

}  // namespace scrd::simplex
