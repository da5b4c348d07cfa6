// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of simplex noise, one set per instruction set, as the bindings see them. No torch header:
// what a kernel for a newer CPU includes must not leak into code that runs on every CPU.
#pragma once

#include <cstdint>
#include <vector>

#include "simplex_noise/hashed_noise.h"
#include "simplex_noise/simplex_noise.h"

namespace scrd::simplex {

constexpr int kLanes = 64;  // points that a kernel takes at once
constexpr int kGroup = 16;  // seeds that share what depends on the points alone

/// Pixel coordinates. Lanes beyond the last point hold any small numbers.
struct Points {
  alignas(64) int32_t x[kLanes];
  alignas(64) int32_t y[kLanes];
  alignas(64) int32_t z[kLanes];
};

/// What a seed stands for, for either variant.
struct SeedState {
  alignas(64) uint8_t permutation[kEntries];
  alignas(64) uint8_t gradient[kEntries];  // gradient_code of the permutation's entries
  HashKeys keys;
};

/// Writes out[s][lane], for up to kGroup seeds.
using NoiseKernel = void (*)(const Points& points, const SeedState* const* seeds, int count,
                             const Fractal& fractal, float (*out)[kLanes]);

struct CpuKernels {
  NoiseKernel opensimplex, hashed;
};

namespace baseline {
extern const CpuKernels kernels;
}
namespace avx2 {
extern const CpuKernels kernels;
}
namespace avx512 {
extern const CpuKernels kernels;
}

/// The kernel for this CPU.
NoiseKernel noise_kernel(Variant variant);

std::vector<SeedState> prepare_seeds(const int64_t* seeds, int64_t count, Variant variant);

}  // namespace scrd::simplex
