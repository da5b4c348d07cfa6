// SPDX-License-Identifier: Apache-2.0
// What a thread of a kernel reads and writes at once, and sums over the threads of a block.
#pragma once

#include <cstring>

#include "common/kernel_prelude.cuh"

namespace scrd {

/// 16 bytes: the widest access of a thread.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = static_cast<int>(16 / sizeof(T));
  T v[kSize];
};

/// For the host: whether packs can be read at `data` and at every multiple of these strides from it.
template <typename T, typename... Strides>
bool takes_packs(const T* data, Strides... strides) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && ((strides % Pack<T>::kSize == 0) && ...);
}

template <typename T>
__device__ Pack<T> load_pack(const T* at) {
  const uint4 bits = __ldg(reinterpret_cast<const uint4*>(at));
  Pack<T> pack;
  memcpy(static_cast<void*>(&pack), &bits, sizeof pack);
  return pack;
}

/// Only `count` elements, from anywhere; the others are zero.
template <typename T>
__device__ Pack<T> load_part(const T* at, int64_t count) {
  Pack<T> pack;
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) pack.v[i] = i < count ? at[i] : static_cast<T>(0.0f);
  return pack;
}

template <typename T>
__device__ void store_pack(T* at, const Pack<T>& pack) {
  uint4 bits;
  memcpy(&bits, static_cast<const void*>(&pack), sizeof bits);
  *reinterpret_cast<uint4*>(at) = bits;
}

template <typename T>
__device__ void store_part(T* at, const Pack<T>& pack, int64_t count) {
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    if (i < count) at[i] = pack.v[i];
  }
}

/// The same bits in every lane: at each step two lanes add the same two numbers.
template <typename A>
__device__ A warp_sum(A value) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(~0u, value, bits);
  return value;
}

/// The sum over a block, for its thread 0. All threads must call it; `warps` is shared memory.
template <typename A, int kWarps>
__device__ A block_sum(A value, SharedArray<A, kWarps>& warps) {
  const int thread = static_cast<int>(threadIdx.x);
  value = warp_sum(value);
  __syncthreads();  // the sum before may still be read
  if (thread % 32 == 0) warps[thread / 32] = value;
  __syncthreads();
  if (thread != 0) return value;
  A sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += warps[warp];
  return sum;
}

}  // namespace scrd
