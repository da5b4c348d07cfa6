// SPDX-License-Identifier: Apache-2.0
// One block after another; the threads of a block are fibers of one thread, and change only at barriers, at
// warp operations and at their end. runtime.cpp decides who is next, fibers.cpp changes stacks.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emul {

/// The order of the blocks, and of the threads of a block wherever several may go on.
enum class Order { kForward, kReverse, kRandom };
enum class WarpOp { kShuffle, kBallot, kSync };

/// A line of the kernel's source.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

/// `max_grid` shrinks every grid to at most that: a kernel that strides over its work with gridDim is right
/// for any grid, and in a small one its loops turn.
void configure(Order order, uint64_t seed, dim3 max_grid);
/// Throws std::runtime_error where CUDA would refuse the launch.
void run_grid(dim3 grid, dim3 block, size_t dynamic_bytes, void (*body)(void*), void* context);

/// Returns how many threads passed a predicate that is not 0.
int barrier(Site site, int predicate);
uint64_t warp_op(Site site, WarpOp op, uint32_t mask, uint64_t value, int source);
int lane();

void* dynamic_shared();
void register_shared(void* address, size_t bytes);
/// AddressSanitizer reports every access from now on; nothing in the other builds.
void forbid(void* address, size_t bytes);

/// Ends the program: a GPU would hang here, or CUDA leaves open what happens. The message begins with the
/// running thread and its last barrier or warp operation.
[[noreturn, gnu::format(printf, 1, 2)]] void fail_here(const char* format, ...);

}  // namespace emul
