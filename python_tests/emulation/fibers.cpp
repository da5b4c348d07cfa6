// SPDX-License-Identifier: Apache-2.0
// EMUL_ASAN and EMUL_TSAN tell a sanitizer of the switches. Never built with -fsanitize=thread itself: what
// the scheduler does is no part of the kernel.
#include "fibers.h"

#include <sys/mman.h>

#include <cstddef>
#include <new>

#include "runtime.h"

#ifdef EMUL_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMUL_TSAN
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

// Keeps what a function must keep on the old stack, and takes it from the new one.
extern "C" void emul_change_stack(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.globl emul_change_stack
.type emul_change_stack,@function
emul_change_stack:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emul_change_stack,.-emul_change_stack
.section .note.GNU-stack,"",@progbits
.text
)");
#else
#error "The emulation changes stacks in x86-64 assembly; write emul_change_stack for this processor."
#endif

namespace emul {

Fiber main_fiber;

namespace {

constexpr size_t kStack = 256 * 1024, kGuardPage = 4096;
Fiber* running = &main_fiber;
void (*fiber_entry)() = nullptr;
#ifdef EMUL_ASAN
Fiber* previous = nullptr;
const void* main_stack = nullptr;  // learned by the first switch away from it
size_t main_stack_size = 0;
#endif

/// What happens first on a stack after a switch to it.
void arrive([[maybe_unused]] void* fake_stack) {
#ifdef EMUL_ASAN
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &size);
  if (previous == &main_fiber) main_stack = bottom, main_stack_size = size;
#endif
}

void begin() {
  arrive(nullptr);
  fiber_entry();
}

char* allocate_stack() {
  void* pages = mmap(nullptr, kStack + kGuardPage, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  mprotect(pages, kGuardPage, PROT_NONE);
  return static_cast<char*>(pages) + kGuardPage;
}

}  // namespace

void prepare(Fiber& fiber, void (*entry)()) {
  fiber_entry = entry;
  if (fiber.stack != nullptr) return;
  fiber.stack = allocate_stack();
#ifdef EMUL_TSAN
  fiber.tsan = __tsan_create_fiber(0);
#endif
  void** top = reinterpret_cast<void**>(fiber.stack + kStack);
  *--top = nullptr;  // the return address of begin(), which leaves the stack aligned as after a call
  *--top = reinterpret_cast<void*>(&begin);
  fiber.stack_pointer = top - 6;  // six registers, any values
}

void switch_to(Fiber& next) {
  Fiber& self = *running;
  if (&next == &self) return;
  running = &next;
#ifdef EMUL_ASAN
  previous = &self;
  const bool home = &next == &main_fiber;
  __sanitizer_start_switch_fiber(&self.fake_stack, home ? main_stack : next.stack,
                                 home ? main_stack_size : kStack);
#endif
#ifdef EMUL_TSAN
  constexpr unsigned kNoOrder = 1;
  if (main_fiber.tsan == nullptr) main_fiber.tsan = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(next.tsan, kNoOrder);
#endif
  emul_change_stack(&self.stack_pointer, next.stack_pointer);
  arrive(self.fake_stack);
}

void acquire([[maybe_unused]] char* token) {
#ifdef EMUL_TSAN
  __tsan_acquire(token);
#endif
}

void release([[maybe_unused]] char* token) {
#ifdef EMUL_TSAN
  __tsan_release(token);
#endif
}

void forbid([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#ifdef EMUL_ASAN
  __asan_poison_memory_region(address, bytes);
#endif
}

}  // namespace emul
