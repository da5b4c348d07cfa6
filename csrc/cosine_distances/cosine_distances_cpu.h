// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of cosine_distances, one set per instruction set, as the binding sees them. No torch
// header: what a kernel for a newer CPU includes must not leak into code that runs on every CPU.
#pragma once

#include <cstdint>

#include "cosine_distances/cosine_distances.h"

namespace scrd::cosine {

/// Pixels that a kernel takes at once, of one image and scale. Their sums stay in the first cache.
constexpr int kTile = 1024;

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
  /// Writes the tile's part of out [samples, pixels].
  void (*distances)(const Maps& maps, const Tile& tile, double eps, void* out);
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
