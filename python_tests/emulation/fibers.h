// SPDX-License-Identifier: Apache-2.0
// Stacks that one thread changes between, and what the sanitizers have to be told about that.
#pragma once

namespace emul {

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // lowest usable byte; null for the stack of the program itself
  void* tsan = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

/// The stack of the program itself.
extern Fiber main_fiber;

/// `entry` runs at the first switch to the fiber, and never returns. Nothing happens to a fiber that is
/// prepared.
void prepare(Fiber& fiber, void (*entry)());
void switch_to(Fiber& next);

/// ThreadSanitizer sees no order between two fibers but from a release to a later acquire of the same token.
void release(char* token);
void acquire(char* token);

}  // namespace emul
