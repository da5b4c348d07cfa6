// SPDX-License-Identifier: Apache-2.0
// What kernel code sees under a host compiler: the built-in names of CUDA C++, with their meaning inside a
// block. Types, qualifiers and the arithmetic of __half and __nv_bfloat16 are NVIDIA's own headers, which a
// host compiler takes as they are. A name that is missing here is added when a kernel needs it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <vector_functions.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "runtime.h"

#undef __shared__
#define __shared__ static  // one block runs at a time, and all its threads are fibers of one thread
#define __launch_bounds__(...)

constexpr int warpSize = 32;

namespace emul {

template <typename Kernel, typename... Args>
void launch(Kernel kernel, dim3 grid, dim3 block, size_t dynamic_bytes, cudaStream_t, Args... args) {
  auto body = [&] { kernel(args...); };
  run_grid(grid, block, dynamic_bytes, [](void* p) { (*static_cast<decltype(body)*>(p))(); }, &body);
}

/// Static shared memory: NaN (0xff) before every block, indices checked, and what lies beside it forbidden to
/// pointers. The compiler's own red zones would not do: it leaves them out in templates and inline functions.
template <typename T, int N>
struct SharedArray {
  alignas(16) unsigned char guard_before[32];
  alignas(16) T v[N];
  unsigned char guard_after[48 - sizeof(T) * N % 16];
  SharedArray() {
    register_shared(v, sizeof v);
    forbid(guard_before, sizeof guard_before);
    forbid(guard_after, sizeof guard_after);
  }
  T& operator[](int i) {
    if (i < 0 || i >= N) fail_here("index %d of a SharedArray of %d", i, N);
    return v[i];
  }
};

template <typename T>
T shuffle(Site site, uint32_t mask, T value, int source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_op(site, WarpOp::kShuffle, mask, bits, source);
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

/// The __atomic built-ins, since ThreadSanitizer knows them.
template <typename T, typename Next>
T atomic_update(T* address, Next next) {
  T old, wanted;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do {
    wanted = next(old);
  } while (!__atomic_compare_exchange(address, &old, &wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

}  // namespace emul

// Barriers and warp operations. The last parameter is never given: it is the place of the call.
inline void __syncthreads(emul::Site site = emul::Site::here()) { emul::barrier(site, 0); }
inline int __syncthreads_count(int predicate, emul::Site site = emul::Site::here()) {
  return emul::barrier(site, predicate);
}
inline int __syncthreads_or(int predicate, emul::Site site = emul::Site::here()) {
  return emul::barrier(site, predicate) != 0;
}
inline void __syncwarp(uint32_t mask = ~0u, emul::Site site = emul::Site::here()) {
  emul::warp_op(site, emul::WarpOp::kSync, mask, 0, 0);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, emul::Site site = emul::Site::here()) {
  return static_cast<uint32_t>(emul::warp_op(site, emul::WarpOp::kBallot, mask, predicate != 0, 0));
}
inline int __any_sync(uint32_t mask, int predicate, emul::Site site = emul::Site::here()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, emul::Site site = emul::Site::here()) {
  return __ballot_sync(mask, !predicate, site) == 0;
}
template <typename T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, emul::Site site = emul::Site::here()) {
  return emul::shuffle(site, mask, value, (emul::lane() & ~(width - 1)) | (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, emul::Site site = emul::Site::here()) {
  const int lane = emul::lane(), source = lane ^ bits;
  return emul::shuffle(site, mask, value, source > (lane | (width - 1)) ? lane : source);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned by, int width = 32,
                   emul::Site site = emul::Site::here()) {
  const int lane = emul::lane(), source = lane + static_cast<int>(by);
  return emul::shuffle(site, mask, value, source > (lane | (width - 1)) ? lane : source);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned by, int width = 32, emul::Site site = emul::Site::here()) {
  const int lane = emul::lane(), source = lane - static_cast<int>(by);
  return emul::shuffle(site, mask, value, source < (lane & ~(width - 1)) ? lane : source);
}

// Memory.
template <typename T>
T atomicAdd(T* address, std::common_type_t<T> value) {
  return emul::atomic_update(address, [=](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicMax(T* address, std::common_type_t<T> value) {
  return emul::atomic_update(address, [=](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicOr(T* address, std::common_type_t<T> value) {
  return emul::atomic_update(address, [=](T old) { return static_cast<T>(old | value); });
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline void __threadfence() {}

// Arithmetic, rounded once: the builds forbid the compiler to contract a * b + c.
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int __float_as_int(float x) { return emul::bit_cast<int>(x); }
inline float __int_as_float(int x) { return emul::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return emul::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emul::bit_cast<float>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? static_cast<std::common_type_t<A, B>>(b) : static_cast<std::common_type_t<A, B>>(a);
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? static_cast<std::common_type_t<A, B>>(b) : static_cast<std::common_type_t<A, B>>(a);
}
