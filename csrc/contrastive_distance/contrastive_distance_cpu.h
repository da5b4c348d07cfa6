// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of contrastive_distance, one set per instruction set, as the binding sees them. No torch
// header: what a kernel for a newer CPU includes must not leak into code that runs on every CPU.
#pragma once

#include <cstdint>

#include "contrastive_distance/contrastive_distance.h"

namespace scrd::contrastive {

/// A run of one sample's values, at most kChunk.
struct Run {
  int64_t sample, first, count;
};

/// Gradients with respect to the maps, dense, in the maps' order. Teachers' may be null.
struct Gradients {
  void *to_clean, *to_noisy, *to_student;
};

struct TypedKernels {
  /// Writes the run's kDots sums.
  void (*sums)(const Maps& maps, const Run& run, double* dots);
  void (*gradients)(const Maps& maps, const Run& run, const Slopes<double>& slopes,
                    const Gradients& gradients);
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

}  // namespace scrd::contrastive
