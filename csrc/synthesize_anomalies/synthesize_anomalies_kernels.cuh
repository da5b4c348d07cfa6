// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "simplex_noise/simplex_noise_device.cuh"
#include "synthesize_anomalies/synthesize_anomalies.h"

namespace scrd::anomalies {

using simplex::Fractal;
using simplex::kBlock;
using simplex::Variant;

/// Adds its noise to each box. The boxes lie on the device, so nobody knows how large they are when the grid
/// is chosen: a block takes every gridDim.x-th run of 256 pixels of a patch, and none where the patch is
/// smaller.
template <typename Noise, typename T>
static __global__ void __launch_bounds__(kBlock)
    patch_kernel(Images<T> images, const int32_t* boxes,  // [samples, 4]
                 const int64_t* seeds,                    // [samples]
                 float strength, const float* std,        // [channels], or null
                 Fractal fractal) {
  __shared__ typename Noise::Shared shared;
  for (int64_t n = blockIdx.y; n < images.sizes[0]; n += gridDim.y) {
    const Patch patch = cut_box(boxes + 4 * n, images.sizes[2], images.sizes[3]);
    const uint32_t pixels = static_cast<uint32_t>(images.sizes[1] * patch.height * patch.width);
    const uint32_t first = blockIdx.x * kBlock;
    if (first >= pixels) continue;  // the whole block
    Noise::prepare(shared, seeds[n]);
    for (uint32_t element = first + threadIdx.x; element < pixels; element += gridDim.x * kBlock) {
      const PatchPixel at = patch_pixel(patch, images, element);
      T& pixel = images.data[n * images.strides[0] + at.place];
      const float noise = simplex::fractal_noise<Noise>(shared, fractal, at.column, at.row, at.channel);
      pixel = add_noise(pixel, noise, strength, std, at.channel);
    }
  }
}

template <typename Noise, typename T>
void launch_patches(const Images<T>& images, const int32_t* boxes, const int64_t* seeds, float strength,
                    const float* std, const Fractal& fractal, cudaStream_t stream) {
  // 12 runs of 256 are a patch of 32 x 32 in three channels. Few images may have large boxes: they get more
  // blocks, and those that find no pixel leave at once.
  constexpr int64_t kRuns = 12, kBlocks = 2048, kMaxGridY = 65535;
  const int64_t pixels = images.sizes[1] * images.sizes[2] * images.sizes[3],
                runs = (pixels + kBlock - 1) / kBlock;
  const int64_t rows = images.sizes[0] < kMaxGridY ? images.sizes[0] : kMaxGridY;
  const int64_t most = kBlocks / rows > kRuns ? kBlocks / rows : kRuns;
  const dim3 grid(static_cast<unsigned>(runs < most ? runs : most), static_cast<unsigned>(rows));
  launch(patch_kernel<Noise, T>, grid, dim3(kBlock), 0, stream, images, boxes, seeds, strength, std,
         simplex::with_unit<Noise>(fractal));
}

/// Adds all patches in one launch, in place. There must be at least one pixel.
template <typename T>
void launch_synthesize_anomalies(Variant variant, const Images<T>& images, const int32_t* boxes,
                                 const int64_t* seeds, float strength, const float* std,
                                 const Fractal& fractal, cudaStream_t stream) {
  const auto launch_variant = variant == Variant::kHashed ? launch_patches<simplex::Hashed, T>
                                                          : launch_patches<simplex::OpenSimplex, T>;
  launch_variant(images, boxes, seeds, strength, std, fractal, stream);
}

}  // namespace scrd::anomalies
