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

/// gradient_code as two halves of a byte, each enough for tables of 16: axis and signs of x and y below, axis
/// and sign of z above. Bit 7 is 0.
inline uint8_t gradient_halves(int entry) {
  const int code = gradient_code(entry);
  return static_cast<uint8_t>((code & 15) | (code & 3) << 4 | (code & 16) << 2);
}

/// What a seed stands for, for either variant.
struct SeedState {
  alignas(64) uint8_t permutation[kEntries + kLanes];  // with its beginning once more at the end
  alignas(64) uint8_t gradient[kEntries];              // gradient_halves of the permutation's entries
  HashKeys keys;
};

/// Writes out[s][lane], for up to kGroup seeds.
using NoiseKernel = void (*)(const Points& points, const SeedState* const* seeds, int count,
                             const Fractal& fractal, float (*out)[kLanes]);

/// `state.permutation` and `state.gradient`.
inline void prepare_permutation(int64_t seed, SeedState& state) {
  build_permutation(seed, state.permutation);
  for (int i = 0; i < kLanes; ++i) state.permutation[kEntries + i] = state.permutation[i];
  for (int i = 0; i < kEntries; ++i) state.gradient[i] = gradient_halves(state.permutation[i]);
}

namespace baseline {
extern const NoiseKernel opensimplex_kernel, hashed_kernel;
}
namespace avx2 {
extern const NoiseKernel opensimplex_kernel, hashed_kernel;
}
namespace avx512 {
extern const NoiseKernel opensimplex_kernel, hashed_kernel;
}

/// The kernel for this CPU.
NoiseKernel noise_kernel(Variant variant);

std::vector<SeedState> prepare_seeds(const int64_t* seeds, int64_t count, Variant variant);

}  // namespace scrd::simplex
