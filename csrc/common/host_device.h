// SPDX-License-Identifier: Apache-2.0
// For the headers that hold an operator's arithmetic: one text for the host and for the GPU.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define SCRD_HOST_DEVICE __host__ __device__
#else
#define SCRD_HOST_DEVICE
#endif

// The build compiles a CPU kernel several times and names the instruction set here. Whatever such a kernel
// includes lives in a namespace of this name: without it the linker would keep one copy of each inline
// function, perhaps the one for another CPU.
#if !defined(SCRD_ISA)
#define SCRD_ISA any
#endif

namespace scrd {
inline namespace SCRD_ISA {

/// a * b + c, in one rounding where that is an instruction. The build forbids the compiler to fuse on its
/// own.
SCRD_HOST_DEVICE inline float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FP_FAST_FMAF)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

SCRD_HOST_DEVICE inline double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__) || defined(__FP_FAST_FMA)
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}

}  // namespace SCRD_ISA
}  // namespace scrd
