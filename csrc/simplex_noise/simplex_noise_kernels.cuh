// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "simplex_noise/simplex_noise_device.cuh"

namespace scrd::simplex {

/// A block takes every gridDim.x-th run of 256 elements of each sample that it visits.
template <typename Noise>
static __global__ void __launch_bounds__(kBlock)
    noise_kernel(const int64_t* seeds,  // [samples]
                 float* out,            // [samples, depth, height, width]
                 int64_t samples, uint32_t elements, uint32_t height, uint32_t width, Fractal fractal) {
  __shared__ typename Noise::Shared shared;
  for (int64_t n = blockIdx.y; n < samples; n += gridDim.y) {
    Noise::prepare(shared, seeds[n]);
    for (uint32_t element = blockIdx.x * kBlock + threadIdx.x; element < elements;
         element += gridDim.x * kBlock) {
      const uint32_t row = element / width;
      out[n * elements + element] =
          fractal_noise<Noise>(shared, fractal, static_cast<int>(element % width),
                               static_cast<int>(row % height), static_cast<int>(row / height));
    }
  }
}

template <typename Noise>
void launch_noise(const int64_t* seeds, float* out, int64_t samples, int64_t depth, int64_t height,
                  int64_t width, const Fractal& fractal, cudaStream_t stream) {
  // Each block prepares its seed, so a large field gets several elements a thread: about this many blocks in
  // all.
  constexpr int64_t kBlocks = 8192, kMaxGridY = 65535;
  const int64_t elements = depth * height * width, runs = (elements + kBlock - 1) / kBlock;
  const int64_t rows = samples < kMaxGridY ? samples : kMaxGridY, columns = (kBlocks + rows - 1) / rows;
  const dim3 grid(static_cast<unsigned>(runs < columns ? runs : columns), static_cast<unsigned>(rows));
  launch(noise_kernel<Noise>, grid, dim3(kBlock), 0, stream, seeds, out, samples,
         static_cast<uint32_t>(elements), static_cast<uint32_t>(height), static_cast<uint32_t>(width),
         with_unit<Noise>(fractal));
}

/// Fills `out` in one launch. Every size must be positive, a sample smaller than 2^31 elements.
inline void launch_simplex_noise(Variant variant, const int64_t* seeds, float* out, int64_t samples,
                                 int64_t depth, int64_t height, int64_t width, const Fractal& fractal,
                                 cudaStream_t stream) {
  const auto launch_variant = variant == Variant::kHashed ? launch_noise<Hashed> : launch_noise<OpenSimplex>;
  launch_variant(seeds, out, samples, depth, height, width, fractal, stream);
}

}  // namespace scrd::simplex
