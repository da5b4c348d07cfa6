// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, with SCRD_ISA as its name.
//
// A strip of the map is A_k (M_k B_k^T), summed over the scales: first the few rows of M_k that the strip
// needs are spread to the map's width, 16 columns at a time, then each row of the map adds the rows in its
// band. Every sum runs over its band from low to high, whatever strip it belongs to.
#include "anomaly_map/anomaly_map_cpu.h"
#include "common/vectors.h"

namespace scrd::maps::SCRD_ISA {
namespace {

/// kRows rows of `map`, side by side, times one block of B^T.
template <int kRows, typename A>
void spread_block(const A* map, int64_t map_width, const A* block, int64_t count, A* to, int64_t stride) {
  using Vector = typename SumsOf<A>::Vector;
  constexpr int kVectors = kColumns / Vector::kLanes;
  Vector sums[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Vector::all(0);
  }
  for (int64_t j = 0; j < count; ++j) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const Vector entries = Vector::load(block + j * kColumns + v * Vector::kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        sums[r][v] = multiply_add(Vector::all(map[r * map_width + j]), entries, sums[r][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) sums[r][v].store(to + r * stride + v * Vector::kLanes);
  }
}

/// Rows begin ... end - 1 of M B^T; `to` has rows of `stride`.
template <typename A>
void spread(const ScaleView<A>& scale, int64_t begin, int64_t end, A* to, int64_t stride) {
  const AxisView<A>& columns = scale.columns;
  const int64_t blocks = (columns.target + kColumns - 1) / kColumns;
  for (int64_t b = 0; b < blocks; ++b) {
    const A* block = columns.blocks + b * columns.block_limit * kColumns;
    const A* map = scale.map + begin * columns.source + columns.block_first[b];
    const int64_t count = columns.block_count[b];
    A* into = to + b * kColumns;
    int64_t i = 0;
    for (; begin + i + 4 <= end; i += 4) {
      spread_block<4>(map + i * columns.source, columns.source, block, count, into + i * stride, stride);
    }
    for (; begin + i < end; ++i) {
      spread_block<1>(map + i * columns.source, columns.source, block, count, into + i * stride, stride);
    }
  }
}

/// 64 columns of one row of the map.
template <typename A>
void add_bands(const ScaleView<A>* scales, int count, int64_t row, int64_t column, int64_t stride, A* to) {
  using Vector = typename SumsOf<A>::Vector;
  constexpr int kVectors = kChunk / Vector::kLanes;
  Vector sums[kVectors];
#pragma GCC unroll 64
  for (int v = 0; v < kVectors; ++v) sums[v] = Vector::all(0);
  for (int k = 0; k < count; ++k) {
    const AxisView<A>& axis = scales[k].rows;
    const A* entries = axis.rows + row * axis.row_limit;
    const A* from = scales[k].spread + (axis.row_first[row] - scales[k].spread_first) * stride + column;
    for (int64_t b = 0; b < axis.row_count[row]; ++b) {
      const Vector entry = Vector::all(entries[b] * scales[k].weight);
#pragma GCC unroll 64
      for (int v = 0; v < kVectors; ++v) {
        sums[v] = multiply_add(entry, Vector::load(from + b * stride + v * Vector::kLanes), sums[v]);
      }
    }
  }
#pragma GCC unroll 64
  for (int v = 0; v < kVectors; ++v) sums[v].store(to + v * Vector::kLanes);
}

template <typename A>
void strip(ScaleView<A>* scales, int count, int64_t begin, int64_t end, A* scratch, A* out) {
  const int64_t width = scales[0].columns.target, stride = padded(width);
  for (int k = 0; k < count; ++k) {
    const Band needed = spread_rows(scales[k], begin, end);
    spread(scales[k], needed.first, needed.end, scratch, stride);
    scales[k].spread = scratch;
    scales[k].spread_first = needed.first;
    scratch += (needed.end - needed.first) * stride;
  }
  for (int64_t row = begin; row < end; ++row) {
    A* to = out + (row - begin) * width;
    int64_t column = 0;
    for (; column + kChunk <= width; column += kChunk) {
      add_bands(scales, count, row, column, stride, to + column);
    }
    if (column == width) continue;
    A rest[kChunk];
    add_bands(scales, count, row, column, stride, rest);
    for (int64_t i = 0; column + i < width; ++i) to[column + i] = rest[i];
  }
}

// -----------------------------------------------------------------------------------------------------------
// the largest pixels

template <typename A>
bool range(const A* pixels, int64_t count, A* least, A* largest) {
  A low = pixels[0], high = pixels[0];
  int unordered = 0;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(| : unordered)
  for (int64_t i = 0; i < count; ++i) {
    low = pixels[i] < low ? pixels[i] : low;
    high = pixels[i] > high ? pixels[i] : high;
    unordered |= pixels[i] != pixels[i];
  }
  *least = low;
  *largest = high;
  return unordered != 0;
}

template <typename A>
void histogram(const A* pixels, int64_t count, const Bins<A>& bins, uint32_t* counts) {
  // Neighbours often share a bin: with one table each would wait for the one before.
  constexpr int kTables = 4, kRun = 1024;
  uint32_t tables[kTables][kBins] = {};
  uint16_t bin[kRun];
  for (int64_t first = 0; first < count; first += kRun) {
    const int length = static_cast<int>(count - first < kRun ? count - first : kRun);
    const A* from = pixels + first;
#pragma omp simd
    for (int i = 0; i < length; ++i)
      bin[i] = static_cast<uint16_t>((key_of(from[i]) - bins.low) >> bins.shift);
    int i = 0;
    for (; i + kTables <= length; i += kTables) {
      for (int t = 0; t < kTables; ++t) ++tables[t][bin[i + t]];
    }
    for (; i < length; ++i) ++tables[0][bin[i]];
  }
  for (int i = 0; i < kBins; ++i) {
    for (int t = 0; t < kTables; ++t) counts[i] += tables[t][i];
  }
}

template <typename A>
Split<A> split(const A* pixels, int64_t count, A lower, A upper, bool no_upper, A* inside) {
  constexpr int kRun = 16;  // most runs lie below and are done with at once
  Split<A> found{0, 0, 0};
  const auto sort_in = [&](A pixel) {
    if (pixel < lower) return;
    if (no_upper || pixel < upper) {
      inside[found.inside++] = pixel;
    } else {
      found.sum += static_cast<double>(pixel);
      ++found.above;
    }
  };
  int64_t first = 0;
  for (; first + kRun <= count; first += kRun) {
    A highest = pixels[first];
#pragma omp simd reduction(max : highest)
    for (int i = 0; i < kRun; ++i) highest = pixels[first + i] > highest ? pixels[first + i] : highest;
    if (highest < lower) continue;
    for (int i = 0; i < kRun; ++i) sort_in(pixels[first + i]);
  }
  for (; first < count; ++first) sort_in(pixels[first]);
  return found;
}

template <typename A>
constexpr TypedKernels<A> kernels_of() {
  return {strip<A>, range<A>, histogram<A>, split<A>};
}

}  // namespace

extern const CpuKernels kernels = {kernels_of<float>(), kernels_of<double>()};

}  // namespace scrd::maps::SCRD_ISA
