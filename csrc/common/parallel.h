// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace scrd {

/// Calls body(i) for i = 0 ... count - 1 on torch's threads; `cost` is that of one call, in nanoseconds.
/// Threads take the next few calls when they have done theirs: one that the machine holds up does not hold up
/// all. `body` must not throw: torch would lose the text of the error.
template <typename Body>
void parallel_for(int64_t count, int64_t cost, const Body& body) {
  constexpr int64_t kWorthAThread = 20000;  // waking a thread takes a few microseconds
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, cost));
  const int64_t parts = (count + grain - 1) / grain;
  const int64_t threads = std::min<int64_t>(parts, torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t first = next.fetch_add(grain); first < count; first = next.fetch_add(grain)) {
      const int64_t end = std::min(first + grain, count);
      for (int64_t i = first; i < end; ++i) body(i);
    }
  });
}

}  // namespace scrd
