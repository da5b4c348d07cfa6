// SPDX-License-Identifier: Apache-2.0
// The matrices of all axes, made anew in each call: they are small, and no state means none that is wrong in
// another stream, under graph capture or in inference mode.
#pragma once

#include "anomaly_map/anomaly_map.h"
#include "common/pack.cuh"

namespace scrd::maps {

constexpr int kScales = 8;  // of one launch
constexpr int kBlock = 256, kWarps = kBlock / 32;
constexpr int kTableRows = 32;  // that a block makes, a lane each
constexpr int kTaps = kBlock - kTableRows;

/// The matrix of an axis, [target, source], of whose rows only a band is not zero.
template <typename A>
struct AxisTable {
  Axis axis;
  int limit;   // entries of a row, all of them inside the source
  int* first;  // [target]: the source of a row's first entry; never falls
  A* entries;  // [limit, target]
  A* means;    // [source]: of the columns
};

template <typename A>
struct Tables {
  AxisTable<A> axes[2 * kScales];
  int count;
  double total;  // of the blur's taps
};

inline double sum_of_taps(const Axis& axis) {
  double sum = 1;
  for (int64_t offset = 1; offset <= axis.radius(); ++offset) sum += 2 * gaussian(offset, axis.sigma);
  return sum;
}

SCRD_HOST_DEVICE inline int64_t row_runs(const Axis& axis) {
  return (axis.target + kTableRows - 1) / kTableRows;
}
SCRD_HOST_DEVICE inline int64_t mean_runs(const Axis& axis) { return (axis.source + kWarps - 1) / kWarps; }

/// For some rows beside each other: where the places under their blur lie, and the taps.
struct Window {
  SharedArray<int, kBlock> first;
  SharedArray<double, kBlock> share;
  SharedArray<double, kTaps> taps;
};

/// The taps from `offset` on, and the places from the first row's one at that offset to the last row's.
__device__ inline void fill_window(Window& window, const Axis& axis, int64_t row, int64_t offset) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t place = row + offset + thread;
  const bool inside = place >= 0 && place < axis.target;  // mostly, and then no remainder is needed
  __syncthreads();                                        // the window before may still be read
  const Between at = between(axis, inside ? place : folded(place, axis.target, axis.mirror));
  window.first[thread] = static_cast<int>(at.first);
  window.share[thread] = at.share;
  if (thread < kTaps) window.taps[thread] = gaussian(offset + thread, axis.sigma);
  __syncthreads();
}

/// What `taps` taps add to the entry of source pixel `entry`, in the row whose places begin at `at`.
__device__ inline double entry_of(Window& window, int at, int taps, int entry) {
  double sum = 0;
  for (int i = 0; i < taps; ++i) {
    const int first = window.first[at + i];
    if (first == entry) sum = multiply_add(window.taps[i], 1 - window.share[at + i], sum);
    if (first + 1 == entry) sum = multiply_add(window.taps[i], window.share[at + i], sum);
  }
  return sum;
}

/// kTableRows rows: a lane a row, a warp an entry.
template <typename A>
__device__ void make_rows(const AxisTable<A>& table, double total, int64_t run, Window& window) {
  const Axis axis = table.axis;
  const int lane = static_cast<int>(threadIdx.x) % kTableRows,
            warp = static_cast<int>(threadIdx.x) / kTableRows;
  const int64_t top = run * kTableRows, row = top + lane, radius = axis.radius();
  const int64_t last = axis.source - table.limit;
  const int64_t begin = row < axis.target ? band(axis, row).first : 0;
  const int first = static_cast<int>(begin < last ? begin : last);
  if (warp == 0 && row < axis.target) table.first[row] = first;
  for (int number = 0; number < table.limit; number += kWarps) {
    const int mine = number + warp;
    double sum = 0;
    for (int64_t offset = -radius; offset <= radius; offset += kTaps) {
      if (number == 0 || 2 * radius >= kTaps) fill_window(window, axis, top, offset);
      const int64_t left = radius - offset + 1;
      sum += entry_of(window, lane, static_cast<int>(left < kTaps ? left : kTaps), first + mine);
    }
    if (row < axis.target && mine < table.limit) {
      table.entries[mine * axis.target + row] = static_cast<A>(sum / total);
    }
  }
}

/// The sum of a column of the blur's matrix: 1 with `reflect`, which keeps the mean. With `mirror` each pixel
/// but the first and the last one stands twice in a period of 2 (target - 1), and so do the rows if they are
/// continued; that counts the first and last row once too often, which lie at all multiples of target - 1.
__device__ inline double column_sum(const Axis& axis, int64_t place, double total) {
  if (!axis.mirror || axis.target == 1) return 1;
  const int64_t period = axis.target - 1, radius = axis.radius();
  double edges = 0;
  for (int64_t m = -((radius - place + period) / period) - 1; m * period <= place + radius; ++m) {
    const int64_t offset = place - m * period;
    if (offset <= radius) edges += gaussian(offset, axis.sigma);
  }
  const bool edge = place == 0 || place == period;
  return (1 + edges / total) * (edge ? 0.5 : 1.0);
}

/// The means of kWarps columns, a warp each: over the upsampled pixels that the source pixel has a share in.
template <typename A>
__device__ void make_means(const AxisTable<A>& table, double total, int64_t run) {
  const Axis axis = table.axis;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t source = run * kWarps + threadIdx.x / 32;
  if (source >= axis.source) return;  // a whole warp
  int64_t low = 0, high = axis.target - 1;
  if (axis.source > 1 && axis.target > 1) {
    const double places = static_cast<double>(axis.target - 1) / static_cast<double>(axis.source - 1);
    const int64_t from = static_cast<int64_t>(places * static_cast<double>(source - 1)) - 1,
                  to = static_cast<int64_t>(places * static_cast<double>(source + 1)) + 1;
    if (from > low) low = from;
    if (to < high) high = to;
  }
  double sum = 0;
  for (int64_t place = low + lane; place <= high; place += 32) {
    const Between at = between(axis, place);
    const double share = at.first == source ? 1 - at.share : at.first + 1 == source ? at.share : 0.0;
    if (share != 0) sum = multiply_add(share, column_sum(axis, place, total), sum);
  }
  sum = warp_sum(sum);
  if (lane == 0) table.means[source] = static_cast<A>(sum / static_cast<double>(axis.target));
}

/// The rows of a matrix that have an entry of one source pixel: [begin, end).
struct Rows {
  int begin, end;
};

template <typename A>
__device__ Rows rows_with(const AxisTable<A>& table, int source) {
  const int target = static_cast<int>(table.axis.target);
  const auto count_below = [&](int bound) {  // rows whose first entry is below that
    int low = 0, high = target;
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (table.first[middle] < bound) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  return {count_below(source - table.limit + 1), count_below(source + 1)};
}

}  // namespace scrd::maps
