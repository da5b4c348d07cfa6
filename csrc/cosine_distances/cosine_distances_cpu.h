// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of cosine_distances, one set per instruction set, as the binding sees them. No torch
// header: what a kernel for a newer CPU includes must not leak into code that runs on every CPU.
#pragma once

#include <cstdint>

#include "cosine_distances/cosine_distances.h"

namespace scrd::cosine {

/// Pixels that a kernel takes at once, of one image and scale. The sums of the smaller tile stay in the first
/// cache; the larger one has longer runs of memory, where planes are read.
constexpr int kSmallTile = 1024;
constexpr int kLargeTile = 4096;

struct Tile {
  int64_t sample, first;
  int count;
};

/// Gradients with respect to both features, laid out as they are, dense. `to_teacher` may be null.
struct Gradients {
  const void* grads;  // of the distances, [samples, pixels]
  void *to_teacher, *to_student;
};

struct TypedKernels {
  /// Writes the tile's part of out [samples, pixels]. The result does not depend on how pixels are tiled.
  void (*distances)(const Maps& maps, const Tile& tile, double eps, void* out);
  /// Of a small tile: the features are read twice, the second time from a cache.
  void (*gradients)(const Maps& maps, const Tile& tile, double eps, const Gradients& gradients);
};

struct CpuKernels {
  TypedKernels of_float, of_double, of_half, of_bfloat16;
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

}  // namespace scrd::cosine
