// SPDX-License-Identifier: Apache-2.0
// What every kernel file includes beside its operator's header; it names no torch type. Under nvcc it is
// CUDA, under a host compiler the emulation of python_tests/emulation, so that tests run the same text on a
// CPU.
//
// Rules for kernel files:
// 1. They include this file and headers of csrc/ that keep to these rules: no torch, no CUB, no cooperative
// groups, no inline PTX.
// 2. They launch through launch(), inside a launcher that takes raw pointers.
// 3. Static shared memory is `__shared__ SharedArray<T, N> name;`
// 4. Dynamic shared memory is `DYNAMIC_SHARED(T, name);`
// 5. Block sizes are multiples of 32, masks name only living lanes, no thread returns before a barrier.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/host_device.h"

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define DYNAMIC_SHARED(T, name)                               \
  extern __shared__ __align__(16) unsigned char name##_raw[]; \
  T* const name = reinterpret_cast<T*>(name##_raw)

namespace scrd {

template <typename T, int N>
struct SharedArray {
  T v[N];
  __device__ T& operator[](int i) { return v[i]; }
};

template <typename Kernel, typename... Args>
void launch(Kernel kernel, dim3 grid, dim3 block, size_t dynamic_bytes, cudaStream_t stream, Args... args) {
  kernel<<<grid, block, dynamic_bytes, stream>>>(args...);
}

}  // namespace scrd

#else

#include "cuda_emul.h"

#define DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::emul::dynamic_shared())

namespace scrd {
using emul::launch;
using emul::SharedArray;
}  // namespace scrd

#endif
