// SPDX-License-Identifier: Apache-2.0
// A tile of the map, from the matrices and the distances of all scales, and the mean, which needs no map.
#pragma once

#include "anomaly_map/anomaly_map_scores.cuh"
#include "anomaly_map/anomaly_map_tables.cuh"

namespace scrd::maps {

constexpr int kTileColumns = 64, kTileRows = 32;
constexpr int kTileWarps = kBlock / kTileColumns;    // rows of threads
constexpr int kThreadRows = kTileRows / kTileWarps;  // of a thread, below each other
constexpr int kChunk = 32;                           // source rows in shared memory

template <typename A>
struct Scale {
  const A* distances;  // [samples, rows.axis.source, columns.axis.source]
  AxisTable<A> rows, columns;
  // Backward only.
  A* gathered;      // [samples, rows.axis.source, columns.axis.target]
  A* to_distances;  // as distances
};

/// The scales of one launch.
template <typename A>
struct Group {
  Scale<A> scales[kScales];
  int count;
  int64_t first, all;  // the number of the first scale; of all scales
  const A* weights;    // [samples, all], or null
  int64_t samples;
  int height, width;

  __device__ A weight(int64_t n, int k) const {
    return weights != nullptr ? weights[n * all + first + k] : A{1};
  }
};

template <typename A>
struct MapResults {
  A *map, *mean;          // [samples, height, width], or null; [samples]
  Extremes<A>* extremes;  // [samples, tiles], of the map
};

/// Some source rows of a scale, for a tile.
template <typename A>
struct Chunk {
  SharedArray<A, kChunk * kTileColumns> stretched;  // along the tile's columns, and weighted
  SharedArray<Pack<A>, kChunk * kTileRows / Pack<A>::kSize>
      factors;  // of source rows, in each of the tile's rows
};

/// Fills it with the source rows begin ... end - 1. A thread's loads do not wait for each other.
template <typename A>
__device__ void fill_chunk(Chunk<A>& chunk, const Scale<A>& scale, A weight, int64_t n, int begin, int end,
                           int tile_row, int column, int height, int width) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kTileColumns;
  constexpr int kTurns = kChunk / kTileWarps, kFactors = kChunk * kTileRows / kBlock;
#pragma unroll
  for (int turn = 0; turn < kFactors; ++turn) {
    const int at = turn * kBlock + thread, row = min(tile_row + at % kTileRows, height - 1);
    const int entry = begin + at / kTileRows - scale.rows.first[row];
    const bool inside = entry >= 0 && entry < scale.rows.limit;
    chunk.factors[at / Pack<A>::kSize].v[at % Pack<A>::kSize] =
        inside ? scale.rows.entries[static_cast<int64_t>(entry) * height + row] : A{0};
  }
  if (column >= width) return;
  const int sources = static_cast<int>(scale.columns.axis.source);
  const A* source =
      scale.distances + (n * scale.rows.axis.source + begin + warp) * sources + scale.columns.first[column];
  const A* factor = scale.columns.entries + column;
  const int rows = end - begin - warp;
  A value[kTurns];
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) value[turn] = 0;
  A next = *factor;
#pragma unroll 1
  for (int j = 0; j < scale.columns.limit; ++j, ++source) {
    const A share = next;
    if (j + 1 < scale.columns.limit) next = *(factor += width);  // on its way in time
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (turn * kTileWarps < rows)
        value[turn] = multiply_add(share, source[turn * kTileWarps * sources], value[turn]);
    }
  }
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    chunk.stretched[(turn * kTileWarps + warp) * kTileColumns + thread % kTileColumns] = weight * value[turn];
  }
}

/// Adds a scale to a thread's kThreadRows pixels of one column: first the source rows are stretched along the
/// tile's columns, in chunks, then along its rows.
template <typename A>
__device__ void add_scale(A* sum, const Scale<A>& scale, A weight, int64_t n, int tile_row, int column,
                          int height, int width, Chunk<A>& chunk) {
  constexpr int kPack = Pack<A>::kSize;
  const int thread = static_cast<int>(threadIdx.x), row = thread / kTileColumns * kThreadRows;
  const auto first = [&](int at) { return scale.rows.first[min(tile_row + at, height - 1)]; };
  const int limit = scale.rows.limit, low = first(0), high = first(kTileRows - 1) + limit;
  const int own_low = first(row), own_high = first(row + kThreadRows - 1) + limit;
  for (int begin = low; begin < high; begin += kChunk) {
    const int end = min(begin + kChunk, high);
    __syncthreads();  // the chunk before may still be read
    fill_chunk(chunk, scale, weight, n, begin, end, tile_row, column, height, width);
    __syncthreads();
    if (column >= width) continue;
    for (int i = max(own_low, begin) - begin; i < min(own_high, end) - begin; ++i) {
      const A value = chunk.stretched[i * kTileColumns + thread % kTileColumns];
#pragma unroll
      for (int r = 0; r < kThreadRows; r += kPack) {
        const Pack<A> factors = chunk.factors[(i * kTileRows + row + r) / kPack];
#pragma unroll
        for (int j = 0; j < kPack; ++j) sum[r + j] = multiply_add(factors.v[j], value, sum[r + j]);
      }
    }
  }
}

/// `continued`: earlier launches have added other scales.
template <typename A>
__device__ void make_tile(const Group<A>& group, const MapResults<A>& results, bool continued, int64_t n,
                          int tile, int tiles, Chunk<A>& chunk, SharedArray<Extremes<A>, kWarps>& warps) {
  const int thread = static_cast<int>(threadIdx.x), across = (group.width - 1) / kTileColumns + 1;
  const int column = tile % across * kTileColumns + thread % kTileColumns;
  const int tile_row = tile / across * kTileRows, row = tile_row + thread / kTileColumns * kThreadRows;
  A* const map = results.map + n * group.height * group.width;
  const auto inside = [&](int r) { return column < group.width && row + r < group.height; };
  const auto place = [&](int r) { return static_cast<int64_t>(row + r) * group.width + column; };
  A sum[kThreadRows];
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) sum[r] = continued && inside(r) ? map[place(r)] : A{0};
  for (int k = 0; k < group.count; ++k) {
    add_scale(sum, group.scales[k], group.weight(n, k), n, tile_row, column, group.height, group.width,
              chunk);
  }
  Extremes<A> extremes{Extremes<A>::kNanKey, 0};
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    if (!inside(r)) continue;
    map[place(r)] = sum[r];
    const auto key = key_of(sum[r]);
    extremes.take(sum[r] == sum[r] ? Extremes<A>{key, key} : Extremes<A>{0, Extremes<A>::kNanKey});
  }
  extremes = block_extremes(extremes, warps);
  if (thread == 0) results.extremes[n * tiles + tile] = extremes;
}

/// Along the columns, for the gradient of distance (i, j).
template <typename A>
__device__ A along_columns(const Scale<A>& scale, int width, int64_t n, int i, int j) {
  const A* gathered = scale.gathered + (n * scale.rows.axis.source + i) * width;
  const Rows columns = rows_with(scale.columns, j);
  A sum = 0;
  for (int w = columns.begin; w < columns.end; ++w) {
    const int64_t entry = j - scale.columns.first[w];
    sum = multiply_add(scale.columns.entries[entry * width + w], gathered[w], sum);
  }
  return sum;
}

/// The mean of an image's map, which needs no map: sum_k w_k a_k^T M_k b_k with the column means a_k and b_k.
template <typename A>
__device__ void make_mean(const Group<A>& group, A* mean, bool continued, int64_t n,
                          SharedArray<A, kWarps>& warps) {
  A sum = 0;
  for (int k = 0; k < group.count; ++k) {
    const Scale<A>& scale = group.scales[k];
    const int sources = static_cast<int>(scale.columns.axis.source);
    const int pixels = static_cast<int>(scale.rows.axis.source) * sources;
    const A* distances = scale.distances + n * pixels;
    A part = 0;
    for (int pixel = static_cast<int>(threadIdx.x); pixel < pixels; pixel += kBlock) {
      const A factor = scale.rows.means[pixel / sources] * scale.columns.means[pixel % sources];
      part = multiply_add(factor, distances[pixel], part);
    }
    sum = multiply_add(group.weight(n, k), part, sum);
  }
  sum = block_sum(sum, warps);
  if (threadIdx.x == 0) mean[n] = continued ? mean[n] + sum : sum;
}

}  // namespace scrd::maps
