// SPDX-License-Identifier: Apache-2.0
// Small kernels, most with one deliberate mistake, that show what the emulation catches.
#include <functional>
#include <stdexcept>
#include <type_traits>

#include "common/kernel_prelude.cuh"
#include "driver.h"

namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32, kRows = 24, kRowBlocks = 5;

enum class Mistake { kNone, kNoBarrier, kNoSecondBarrier, kEarlyReturn, kTwoBarriers, kUninitialised };

__device__ float warp_sum(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

/// out[row] = the sum of kThreads consecutive numbers. `Partial` is a SharedArray or a plain array.
template <Mistake mistake, typename Partial>
__global__ void row_sum(const float* x, float* out) {
  __shared__ Partial partial;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  if (mistake == Mistake::kEarlyReturn && warp == 3) return;
  for (unsigned row = blockIdx.x; row < kRows; row += gridDim.x) {
    const float sum = warp_sum(x[row * kThreads + threadIdx.x]);
    if (lane == 0 && !(mistake == Mistake::kUninitialised && warp == 2)) partial[warp] = sum;
    if (mistake == Mistake::kTwoBarriers && warp == 1) {
      __syncthreads();
    } else if (mistake != Mistake::kNoBarrier) {
      __syncthreads();
    }
    if (warp == 0) {
      const float total = warp_sum(lane < kWarps ? partial[lane] : 0.0f);
      if (lane == 0) out[row] = total;
    }
    if (mistake != Mistake::kNoSecondBarrier) __syncthreads();
  }
}

__global__ void vector_load(const float* x, float* out, int size) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (i < size) {
    const float4 v = *reinterpret_cast<const float4*>(x + i);
    out[i / 4] = v.x + v.y + v.z + v.w;  // of a load whose lanes are not all used the compiler loads a part
  }
}

__global__ void shared_overflow_plain(float* out) {
  __shared__ float s[kThreads];
  s[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}

template <typename T>
__global__ void shared_overflow_index(T* out) {
  __shared__ scrd::SharedArray<T, kThreads> s;
  s[static_cast<int>(threadIdx.x) + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = s[static_cast<int>(threadIdx.x)];
}

template <typename T>
__global__ void shared_overflow_pointer(T* out) {
  __shared__ scrd::SharedArray<T, kThreads> s;
  T* pointer = s.v;
  pointer[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = pointer[threadIdx.x];
}

__global__ void dynamic_overflow(float* out) {
  DYNAMIC_SHARED(float, s);
  s[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}

__global__ void bad_mask(float* out) {
  float v = 1.0f;
  if (threadIdx.x % 32 < 16) v += __shfl_xor_sync(0xffffffffu, v, 1);
  out[threadIdx.x] = v;
}

/// Shuffles order no memory, __syncwarp does.
template <bool right>
__global__ void warp_exchange(float* out) {
  __shared__ float s[kThreads];
  s[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (right) {
    __syncwarp();
  } else {
    __shfl_xor_sync(0xffffffffu, 0, 1);
  }
  out[threadIdx.x] = s[threadIdx.x ^ 1];
}

template <bool right>
__global__ void accumulate(float* out) {
  if (right) {
    atomicAdd(&out[threadIdx.x / 2], 1.0f);
  } else {
    out[threadIdx.x / 2] += 1.0f;
  }
}

/// Every operation of a half-warp, with disjoint masks; out[i] is 0 where all of them agree with the CUDA
/// guide.
__global__ void warp_operations(float* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  const int first = lane / 8 * 8, last = first + 7;  // of the eight that width = 8 makes
  int wrong = 0;
  wrong += __shfl_sync(half, lane, 3, 8) != first + 3;
  wrong += __shfl_up_sync(half, lane, 2, 8) != (lane - 2 < first ? lane : lane - 2);
  wrong += __shfl_down_sync(half, lane, 2, 8) != (lane + 2 > last ? lane : lane + 2);
  wrong += __shfl_xor_sync(half, static_cast<double>(lane), 5, 8) != (lane ^ 5);
  wrong += __ballot_sync(half, lane % 2) != (half & 0xaaaaaaaau);
  wrong += __any_sync(half, lane == 20) != (lane >= 16);
  wrong += __all_sync(half, lane < 16) != (lane < 16);
  __syncwarp(half);
  wrong += __syncthreads_count(lane == 0) != kWarps;
  wrong += __syncthreads_or(threadIdx.x == 77) == 0;
  out[threadIdx.x] = static_cast<float>(wrong);
}

template <Mistake mistake, typename Partial = scrd::SharedArray<float, kWarps>>
void sum_rows(const float* x, float* out) {
  scrd::launch(row_sum<mistake, Partial>, dim3(kRowBlocks), dim3(kThreads), 0, nullptr, x, out);
}

template <typename Kernel, typename... Args>
void one_block(Kernel kernel, size_t dynamic_bytes, Args... args) {
  scrd::launch(kernel, dim3(1), dim3(kThreads), dynamic_bytes, nullptr, args...);
}

using Case = std::function<void(const float* x, int size, float* out)>;
using Plain = float[kWarps];

#define SUM(...) [](const float* x, int, float* out) { sum_rows<__VA_ARGS__>(x, out); }
#define BLOCK(bytes, ...) [](const float*, int, float* out) { one_block(__VA_ARGS__, bytes, out); }
const std::map<std::string, Case> kCases = {
    {"right", SUM(Mistake::kNone)},
    {"right_plain", SUM(Mistake::kNone, Plain)},
    {"no_barrier", SUM(Mistake::kNoBarrier)},
    {"no_barrier_plain", SUM(Mistake::kNoBarrier, Plain)},
    {"no_second_barrier", SUM(Mistake::kNoSecondBarrier)},
    {"early_return", SUM(Mistake::kEarlyReturn)},
    {"two_barriers", SUM(Mistake::kTwoBarriers)},
    {"uninitialised", SUM(Mistake::kUninitialised)},
    {"vector_load",
     [](const float* x, int size, float* out) {
       scrd::launch(vector_load, dim3(7), dim3(kThreads), 0, nullptr, x, out, size);
     }},
    {"shared_overflow_plain", BLOCK(0, shared_overflow_plain)},
    {"shared_overflow_index", BLOCK(0, shared_overflow_index<float>)},
    {"shared_overflow_pointer", BLOCK(0, shared_overflow_pointer<float>)},
    {"dynamic_overflow", BLOCK(kThreads * sizeof(float), dynamic_overflow)},
    {"dynamic_right", BLOCK((kThreads + 1) * sizeof(float), dynamic_overflow)},
    {"bad_mask", BLOCK(0, bad_mask)},
    {"exchange_right", BLOCK(0, warp_exchange<true>)},
    {"exchange_unsynced", BLOCK(0, warp_exchange<false>)},
    {"accumulate_right", BLOCK(0, accumulate<true>)},
    {"accumulate_racing", BLOCK(0, accumulate<false>)},
    {"warp_operations", BLOCK(0, warp_operations)},
    {"ragged_block",
     [](const float*, int, float* out) { scrd::launch(bad_mask, dim3(1), dim3(48), 0, nullptr, out); }},
};

}  // namespace

void driver::run(const Arguments& arguments) {
  const auto found = kCases.find(arguments.text("case"));
  if (found == kCases.end()) throw std::invalid_argument("no case " + arguments.text("case"));
  const Array<float> x = arguments.array<float>("x"), out = arguments.array<float>("out");
  found->second(x.data(), static_cast<int>(x.size()), out.data());
  arguments.give(out);
}
