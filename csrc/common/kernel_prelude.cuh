// SPDX-License-Identifier: Apache-2.0
// What every kernel file includes beside its operator's header; it names no torch type.
//
// A kernel file keeps to these names, so that another prelude can run the same text on a host:
// 1. it includes only this file and <op>.h;
// 2. it launches through launch(), inside a launcher that takes raw pointers;
// 3. static shared memory is `__shared__ SharedArray<T, N> name;`
// 4. block sizes are multiples of 32, and no thread returns before a barrier.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "common/host_device.h"

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
