// SPDX-License-Identifier: Apache-2.0
// The scheduler.
#include "runtime.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibers.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emul {
namespace {

constexpr int kMaxThreads = 1024;
constexpr size_t kMaxDynamic = 48 * 1024;

struct Thread {
  Fiber fiber;
  uint3 index{};
  bool returned = false;
  Site site{};  // of the last barrier or warp operation
  WarpOp op{};
  uint32_t mask = 0;
  uint64_t value = 0;  // what it brings to a warp operation, then what it takes away
  int source = 0;
};

struct Warp {
  uint32_t ready = 0, waiting = 0, returned = 0, priority = 0;  // the first three: a bit a lane
  int generation = 0;
  char token[2];
};

// Each barrier has two tokens in turn: with one, the next release of a fast thread would hide races of slow
// ones.
struct Barrier {
  int arrived = 0, predicates = 0, result = 0, generation = 0;
  Site site{};
  char token[2];
};

struct Region {
  void* address;
  size_t bytes;
};

Thread all_threads[kMaxThreads];
Warp warps[kMaxThreads / 32];
Barrier block_barrier;
int threads = 0, alive = 0, current = 0;
char start_token, end_token;
void (*kernel_body)(void*);
void* kernel_context;
void* dynamic_memory = nullptr;
Order order = Order::kForward;
uint64_t random_state = 0;
dim3 max_grid;

std::vector<Region>& shared_regions() {
  static std::vector<Region> regions;
  return regions;
}

/// SplitMix64.
uint64_t next_random() {
  uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

bool same(const Site& a, const Site& b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

int warp_count() { return (threads + 31) / 32; }

void wake(int t) { warps[t / 32].ready |= 1u << (t % 32); }

int find_ready_warp() {
  int best = -1;
  for (int i = 0; i < warp_count(); ++i) {
    const int w = order == Order::kReverse ? warp_count() - 1 - i : i;
    if (warps[w].ready == 0) continue;
    if (best < 0 || warps[w].priority > warps[best].priority) best = w;
  }
  return best;
}

/// Lowest, highest, or at random: the warp of the highest priority, which is random and rarely drawn anew, so
/// that one warp may run far ahead. Threads drawn evenly stay abreast of each other and hide missing
/// barriers.
int find_ready() {
  const int w = find_ready_warp();
  if (w < 0) return -1;
  const uint32_t ready = warps[w].ready;
  if (order == Order::kForward) return w * 32 + __builtin_ctz(ready);
  if (order == Order::kReverse) return w * 32 + 31 - __builtin_clz(ready);
  const uint64_t random = next_random();
  if ((random >> 40) % 128 == 0) warps[w].priority = static_cast<uint32_t>(next_random());
  const int shift = random % 32;
  const uint32_t rotated = shift != 0 ? ready >> shift | ready << (32 - shift) : ready;
  return w * 32 + (__builtin_ctz(rotated) + shift) % 32;
}

struct Text {
  char text[256];
};

Text describe(int t) {
  Text out;
  const Thread& thread = all_threads[t];
  const uint3 i = thread.index, b = blockIdx;
  const int length = std::snprintf(out.text, sizeof out.text, "block (%u,%u,%u) thread (%u,%u,%u) ", b.x, b.y,
                                   b.z, i.x, i.y, i.z);
  const size_t rest = sizeof out.text - static_cast<size_t>(length);
  if (thread.site.file != nullptr) {
    std::snprintf(out.text + length, rest, "at %s:%d", thread.site.file, thread.site.line);
  } else {
    std::snprintf(out.text + length, rest, "before its first barrier");
  }
  return out;
}

/// Leaves the running thread for any that may go on; comes back when it is this one's turn.
void run_next() {
  const int t = find_ready();
  if (t < 0) {
    if (alive == 0) return switch_to(main_fiber);
    while (all_threads[current].returned)
      current = (current + 1) % threads;  // the message names one that waits
    fail_here("deadlock: %d of %d threads wait, and none can go on", alive, threads);
  }
  warps[t / 32].ready &= ~(1u << (t % 32));
  current = t;
  threadIdx = all_threads[t].index;
  switch_to(all_threads[t].fiber);
}

void finish_thread() {
  all_threads[current].returned = true;
  --alive;
  warps[current / 32].returned |= 1u << (current % 32);
  const Barrier& b = block_barrier;
  if (b.arrived > 0) {
    fail_here("this thread returned while %d others wait at __syncthreads() %s:%d", b.arrived, b.site.file,
              b.site.line);
  }
  run_next();
}

void thread_main() {
  for (;;) {  // a turn a block
    acquire(&start_token);
    kernel_body(kernel_context);
    release(&end_token);
    finish_thread();
  }
}

void check_limits(dim3 grid, dim3 block, size_t dynamic_bytes) {
  const uint64_t count = uint64_t{block.x} * block.y * block.z, blocks = uint64_t{grid.x} * grid.y * grid.z;
  const auto text = [](dim3 d) {
    return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
  };
  if (count == 0 || count > kMaxThreads || block.z > 64 || count % 32 != 0) {
    throw std::runtime_error("a block must have 32 to 1024 threads, in whole warps, z <= 64; got " +
                             text(block));
  }
  if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    throw std::runtime_error("a grid must be (1 to 2^31-1, 1 to 65535, 1 to 65535), got " + text(grid));
  }
  if (dynamic_bytes > kMaxDynamic) {
    throw std::runtime_error("more than 48 KiB of dynamic shared memory need an opt-in, got " +
                             std::to_string(dynamic_bytes) + " bytes");
  }
}

void prepare_threads(dim3 grid, dim3 block) {
  blockDim = block;
  gridDim = grid;
  threads = static_cast<int>(block.x * block.y * block.z);
  for (int i = 0; i < threads; ++i) {
    const unsigned t = static_cast<unsigned>(i);
    prepare(all_threads[i].fiber, &thread_main);
    all_threads[i].index = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
  }
}

std::vector<uint64_t> block_sequence(uint64_t blocks) {
  std::vector<uint64_t> sequence(blocks);
  std::iota(sequence.begin(), sequence.end(), uint64_t{0});
  if (order == Order::kReverse) std::reverse(sequence.begin(), sequence.end());
  if (order == Order::kRandom) {
    for (uint64_t i = blocks; i > 1; --i) std::swap(sequence[i - 1], sequence[next_random() % i]);
  }
  return sequence;
}

void run_block(uint64_t b, size_t dynamic_bytes) {
  const dim3 g = gridDim;
  blockIdx = {static_cast<unsigned>(b % g.x), static_cast<unsigned>(b / g.x % g.y),
              static_cast<unsigned>(b / g.x / g.y)};
  if (dynamic_memory != nullptr) std::memset(dynamic_memory, 0xff, dynamic_bytes);
  for (const Region& region : shared_regions()) std::memset(region.address, 0xff, region.bytes);
  alive = threads;
  block_barrier.arrived = block_barrier.predicates = 0;
  for (int w = 0; w < warp_count(); ++w) {
    warps[w].ready = warps[w].waiting = warps[w].returned = 0;
    warps[w].priority = order == Order::kRandom ? static_cast<uint32_t>(next_random()) : 0;
  }
  for (int t = 0; t < threads; ++t) {
    all_threads[t].returned = false;
    all_threads[t].site = Site{};
    wake(t);
  }
  release(&start_token);
  run_next();
  acquire(&end_token);
}

/// Every lane of the mask is here: works out the results and lets them go on.
void complete_warp_op(int base, uint32_t mask) {
  uint64_t results[32] = {}, votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const Thread& thread = all_threads[base + lane];
    const Thread& self = all_threads[current];
    if (thread.mask != mask || thread.op != self.op || !same(thread.site, self.site)) {
      fail_here("lane %d of this warp is at another warp operation, %s (masks %08x, %08x)", lane,
                describe(base + lane).text, mask, thread.mask);
    }
    votes |= (thread.value & 1) << lane;
    results[lane] = all_threads[base + thread.source].value;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Thread& thread = all_threads[base + lane];
    thread.value = thread.op == WarpOp::kShuffle ? results[lane] : votes;
    wake(base + lane);
  }
  Warp& warp = warps[base / 32];
  warp.waiting &= ~mask;
  warp.generation ^= 1;
}

}  // namespace

void configure(Order new_order, uint64_t seed, dim3 new_max_grid) {
  order = new_order;
  random_state = seed;
  max_grid = new_max_grid;
}

int lane() { return current % 32; }

void* dynamic_shared() { return dynamic_memory; }

void register_shared(void* address, size_t bytes) {
  std::memset(address, 0xff, bytes);
  shared_regions().push_back({address, bytes});
}

void fail_here(const char* format, ...) {
  std::fprintf(stderr, "%s: ", describe(current).text);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::_Exit(1);  // the other threads stand in mid-kernel, and their frames cannot be unwound
}

int barrier(Site site, int predicate) {
  Barrier& b = block_barrier;
  const int generation = b.generation;
  all_threads[current].site = site;
  if (alive != threads) fail_here("__syncthreads() after %d threads have returned", threads - alive);
  if (b.arrived == 0) b.site = site;
  if (!same(site, b.site)) {
    fail_here("other threads wait at a different __syncthreads(), %s:%d", b.site.file, b.site.line);
  }
  release(&b.token[generation]);
  b.predicates += predicate != 0;
  if (++b.arrived == threads) {
    b.result = b.predicates;
    b.arrived = b.predicates = 0;
    b.generation ^= 1;
    for (int t = 0; t < threads; ++t) wake(t);
  }
  run_next();
  acquire(&b.token[generation]);
  return b.result;
}

uint64_t warp_op(Site site, WarpOp op, uint32_t mask, uint64_t value, int source) {
  Warp& warp = warps[current / 32];
  Thread& self = all_threads[current];
  self.site = site;
  self.op = op;
  self.mask = mask;
  self.value = value;
  self.source = source;
  if ((mask >> lane() & 1) == 0) fail_here("the mask %08x does not name the calling lane", mask);
  if ((mask & warp.returned) != 0) {
    fail_here("the mask %08x names lanes that have returned (%08x)", mask, warp.returned);
  }
  if (op == WarpOp::kShuffle && (mask >> source & 1) == 0) {
    fail_here("reads lane %d, which is not in the mask %08x", source, mask);
  }
  char* token = &warp.token[warp.generation];
  const bool orders_memory = op == WarpOp::kSync;  // CUDA promises that of no other warp operation
  if (orders_memory) release(token);
  warp.waiting |= 1u << lane();
  if ((warp.waiting & mask) == mask) complete_warp_op(current / 32 * 32, mask);
  run_next();
  if (orders_memory) acquire(token);
  return self.value;
}

void run_grid(dim3 grid, dim3 block, size_t dynamic_bytes, void (*body)(void*), void* context) {
  check_limits(grid, block, dynamic_bytes);
  grid = {std::min(grid.x, max_grid.x), std::min(grid.y, max_grid.y), std::min(grid.z, max_grid.z)};
  prepare_threads(grid, block);
  kernel_body = body;
  kernel_context = context;
  // Of exactly that size: AddressSanitizer sees the byte behind it.
  if (dynamic_bytes > 0 && posix_memalign(&dynamic_memory, 16, dynamic_bytes) != 0) throw std::bad_alloc();
  for (const uint64_t b : block_sequence(uint64_t{grid.x} * grid.y * grid.z)) run_block(b, dynamic_bytes);
  std::free(dynamic_memory);
  dynamic_memory = nullptr;
}

}  // namespace emul
