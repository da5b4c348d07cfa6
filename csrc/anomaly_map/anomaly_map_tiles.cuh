// SPDX-License-Identifier: Apache-2.0
// A tile of the map, from the matrices and the distances of all scales, and the mean, which needs no map.
#pragma once

#include "anomaly_map/anomaly_map_scores.cuh"
#include "anomaly_map/anomaly_map_tables.cuh"

namespace scrd::maps {

constexpr int kTileColumns = 64, kTileRows = 16;
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

template <typename A>
using Chunk = SharedArray<A, kChunk * kTileColumns>;

/// Adds a scale to a thread's kThreadRows pixels of one column: first the source rows are stretched along the
/// tile's columns, in chunks, then along its rows.
template <typename A>
__device__ void add_scale(A* sum, const Scale<A>& scale, A weight, int64_t n, int tile_row, int column,
                          int height, int width, Chunk<A>& chunk) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kTileColumns,
            warp = thread / kTileColumns;
  const int sources = static_cast<int>(scale.columns.axis.source), limit = scale.rows.limit;
  const A* distances = scale.distances + n * scale.rows.axis.source * sources;
  const int bottom = min(tile_row + kTileRows, height) - 1;
  const int low = scale.rows.first[tile_row], high = scale.rows.first[bottom] + limit;
  const int from = column < width ? scale.columns.first[column] : 0;
  int row[kThreadRows], first[kThreadRows];
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    row[r] = min(tile_row + warp * kThreadRows + r, height - 1);
    first[r] = scale.rows.first[row[r]];
  }
  for (int begin = low; begin < high; begin += kChunk) {
    const int end = min(begin + kChunk, high);
    __syncthreads();  // the chunk before may still be read
    for (int i = begin + warp; i < end && column < width; i += kTileWarps) {
      const A* source = distances + static_cast<int64_t>(i) * sources + from;
      A value = 0;
      for (int j = 0; j < scale.columns.limit; ++j) {
        value =
            multiply_add(scale.columns.entries[static_cast<int64_t>(j) * width + column], source[j], value);
      }
      chunk[(i - begin) * kTileColumns + lane] = weight * value;
    }
    __syncthreads();
    const int top = max(begin, first[0]), stop = min(end, first[kThreadRows - 1] + limit);
    for (int i = top; i < stop && column < width; ++i) {
      const A value = chunk[(i - begin) * kTileColumns + lane];
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
        const int entry = i - first[r];
        if (entry < 0 || entry >= limit) continue;
        const A factor = scale.rows.entries[static_cast<int64_t>(entry) * height + row[r]];
        sum[r] = multiply_add(factor, value, sum[r]);
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
