// SPDX-License-Identifier: Apache-2.0
// From the distances of all scales to the map and its scores: the matrices of all axes, then the map in
// tiles, then the scores of each image. Every sum has one order, which follows from the sizes alone.
#pragma once

#include <algorithm>
#include <vector>

#include "anomaly_map/anomaly_map_scores.cuh"
#include "anomaly_map/anomaly_map_tables.cuh"
#include "anomaly_map/anomaly_map_tiles.cuh"

namespace scrd::maps {

constexpr int kShares = 8;  // of one launch

/// A block makes some rows of an axis (y), or some column means.
template <typename A>
static __global__ void __launch_bounds__(kBlock, 2) table_kernel(Tables<A> tables) {
  __shared__ Window window;
  for (int axis = static_cast<int>(blockIdx.y); axis < tables.count; axis += static_cast<int>(gridDim.y)) {
    const AxisTable<A>& table = tables.axes[axis];
    const int64_t rows = row_runs(table.axis), runs = rows + mean_runs(table.axis);
    for (int64_t run = blockIdx.x; run < runs; run += gridDim.x) {
      if (run < rows) {
        make_rows(table, tables.total, run, window);
      } else {
        make_means(table, tables.total, run - rows);
      }
    }
  }
}

/// On a multiprocessor at once, as registers allow without spills.
template <typename A>
constexpr int kMapBlocks = sizeof(A) == sizeof(float) ? 3 : 2;

/// Block 0 of an image makes its mean, the others tiles of its map.
template <typename A>
static __global__ void __launch_bounds__(kBlock, kMapBlocks<A>)
    map_kernel(Group<A> group, MapResults<A> results, int tiles, bool continued) {
  __shared__ Chunk<A> chunk;
  __shared__ SharedArray<Extremes<A>, kWarps> extremes;
  __shared__ SharedArray<A, kWarps> sums;
  for (int64_t n = blockIdx.y; n < group.samples; n += gridDim.y) {
    for (int block = static_cast<int>(blockIdx.x); block <= tiles; block += static_cast<int>(gridDim.x)) {
      if (block == 0) {
        make_mean(group, results.mean, continued, n, sums);
      } else {
        make_tile(group, results, continued, n, block - 1, tiles, chunk, extremes);
      }
    }
  }
}

template <typename A>
struct Scores {
  const A* map;                 // [samples, pixels]
  const Extremes<A>* extremes;  // [samples, tiles]
  A *max, *top;                 // [samples]; [samples, all]
  int64_t samples;
  int pixels, tiles;
  bool packs;
  int counts[kShares];  // the largest pixels of each share
  int count, first, all;
};

/// A block an image and share. A NaN in the map makes all scores NaN. (Without __grid_constant__ the compiler
/// copies `scores` to local memory.)
template <typename A>
static __global__ void __launch_bounds__(kScoreBlock)
    scores_kernel(const __grid_constant__ Scores<A> scores) {
  __shared__ ScoreShared<A> shared;
  __shared__ SharedArray<Extremes<A>, 1> whole;
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t n = blockIdx.y; n < scores.samples; n += gridDim.y) {
    Extremes<A> range{Extremes<A>::kNanKey, 0};
    for (int tile = thread; tile < scores.tiles; tile += kScoreBlock) {
      range.take(scores.extremes[n * scores.tiles + tile]);
    }
    range = block_extremes(range, shared.extremes);
    if (thread == 0) whole[0] = range;
    __syncthreads();
    range = whole[0];
    const bool nan = range.highest == Extremes<A>::kNanKey;
    if (thread == 0 && blockIdx.x == 0)
      scores.max[n] = nan ? static_cast<A>(NAN) : value_of<A>(range.highest);
    const Pixels<A> pixels{scores.map + n * scores.pixels, scores.pixels, scores.packs};
    for (int share = static_cast<int>(blockIdx.x); share < scores.count;
         share += static_cast<int>(gridDim.x)) {
      const double mean =
          nan ? static_cast<double>(NAN) : mean_of_top(pixels, range, scores.counts[share], shared);
      if (thread == 0) scores.top[n * scores.all + scores.first + share] = static_cast<A>(mean);
    }
  }
}

// -----------------------------------------------------------------------------------------------------------
// gradients

/// Along the map's rows: gathered[n, i, w] = sum_h A[h, i] grad[n, h, w]. A block a source row (x), image (y)
/// and scale (z).
template <typename A>
static __global__ void __launch_bounds__(kBlock, 2) gather_kernel(Group<A> group, const A* grad_map) {
  const Scale<A>& scale = group.scales[blockIdx.z];
  const int sources = static_cast<int>(scale.rows.axis.source);
  for (int64_t n = blockIdx.y; n < group.samples; n += gridDim.y) {
    const A* grad = grad_map + n * group.height * group.width;
    for (int i = static_cast<int>(blockIdx.x); i < sources; i += static_cast<int>(gridDim.x)) {
      const Rows rows = rows_with(scale.rows, i);
      A* gathered = scale.gathered + (n * sources + i) * group.width;
      for (int column = static_cast<int>(threadIdx.x); column < group.width; column += kBlock) {
        A sum = 0;
        for (int h = rows.begin; h < rows.end; ++h) {
          const int64_t entry = i - scale.rows.first[h];
          sum = multiply_add(scale.rows.entries[entry * group.height + h],
                             grad[static_cast<int64_t>(h) * group.width + column], sum);
        }
        gathered[column] = sum;
      }
    }
  }
}

/// Along its columns, with the mean's share, and the product with the distances for the weights. A block an
/// image (y) and scale (x). `gathered` is false where the map has no gradient.
template <typename A>
static __global__ void __launch_bounds__(kBlock, 2)
    distance_gradients_kernel(Group<A> group, const A* grad_mean, A* to_weights, bool gathered) {
  __shared__ SharedArray<A, kWarps> sums;
  for (int64_t n = blockIdx.y; n < group.samples; n += gridDim.y) {
    for (int k = static_cast<int>(blockIdx.x); k < group.count; k += static_cast<int>(gridDim.x)) {
      const Scale<A>& scale = group.scales[k];
      const int sources = static_cast<int>(scale.columns.axis.source);
      const int pixels = static_cast<int>(scale.rows.axis.source) * sources;
      const A weight = group.weight(n, k);
      A product = 0;
      for (int pixel = static_cast<int>(threadIdx.x); pixel < pixels; pixel += kBlock) {
        const int i = pixel / sources, j = pixel % sources;
        A grad = scale.rows.means[i] * scale.columns.means[j] * grad_mean[n];
        if (gathered) grad += along_columns(scale, group.width, n, i, j);
        scale.to_distances[n * pixels + pixel] = weight * grad;
        product = multiply_add(grad, scale.distances[n * pixels + pixel], product);
      }
      product = block_sum(product, sums);
      if (to_weights != nullptr && threadIdx.x == 0) to_weights[n * group.all + group.first + k] = product;
    }
  }
}
// -----------------------------------------------------------------------------------------------------------
// launchers

/// The distances of one scale, [samples, height, width].
template <typename A>
struct Source {
  const A* distances;
  int64_t height, width;
};

/// What both directions take. The map has fewer than 2^31 - 2^16 pixels, and so has each scale.
template <typename A>
struct Problem {
  std::vector<Source<A>> scales;
  const A* weights;  // [samples, scales], or null
  int64_t samples, height, width;
  double sigma;
  bool mirror;

  int tiles() const {
    return static_cast<int>(((height - 1) / kTileRows + 1) * ((width - 1) / kTileColumns + 1));
  }
};

/// Hands out memory; from null it only counts.
class Scratch {
 public:
  explicit Scratch(void* memory) : begin_(reinterpret_cast<uintptr_t>(memory)), next_(begin_) {}
  template <typename T>
  T* take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(next_);
    next_ += (static_cast<uintptr_t>(count) * sizeof(T) + 15) / 16 * 16;
    return taken;
  }
  int64_t bytes() const { return static_cast<int64_t>(next_ - begin_); }

 private:
  uintptr_t begin_, next_;
};

template <typename A>
AxisTable<A> plan_axis(const Axis& axis, Scratch& scratch) {
  const int64_t limit = band_limit(axis);
  return {axis, static_cast<int>(limit), scratch.take<int>(axis.target), scratch.take<A>(limit * axis.target),
          scratch.take<A>(axis.source)};
}

template <typename A>
std::vector<Scale<A>> plan_scales(const Problem<A>& problem, Scratch& scratch) {
  std::vector<Scale<A>> scales;
  for (const Source<A>& source : problem.scales) {
    const Axis rows{source.height, problem.height, problem.sigma, problem.mirror},
        columns{source.width, problem.width, problem.sigma, problem.mirror};
    scales.push_back(
        {source.distances, plan_axis<A>(rows, scratch), plan_axis<A>(columns, scratch), nullptr, nullptr});
  }
  return scales;
}

constexpr int64_t kMaxGridY = 65535;
inline unsigned samples_in_grid(int64_t samples) {
  return static_cast<unsigned>(samples < kMaxGridY ? samples : kMaxGridY);
}

/// Makes the matrices, then calls each(group): kScales scales at a time.
template <typename A, typename Each>
void for_groups(const Problem<A>& problem, const std::vector<Scale<A>>& scales, cudaStream_t stream,
                const Each& each) {
  const double total = sum_of_taps(scales[0].rows.axis);
  const int64_t all = static_cast<int64_t>(scales.size());
  for (int64_t first = 0; first < all; first += kScales) {
    Group<A> group{{},
                   static_cast<int>(std::min<int64_t>(all - first, kScales)),
                   first,
                   all,
                   problem.weights,
                   problem.samples,
                   static_cast<int>(problem.height),
                   static_cast<int>(problem.width)};
    Tables<A> tables{{}, 2 * group.count, total};
    int64_t runs = 1;
    for (int k = 0; k < group.count; ++k) {
      group.scales[k] = scales[static_cast<size_t>(first + k)];
      tables.axes[2 * k] = group.scales[k].rows;
      tables.axes[2 * k + 1] = group.scales[k].columns;
    }
    for (int axis = 0; axis < tables.count; ++axis) {
      runs = std::max(runs, row_runs(tables.axes[axis].axis) + mean_runs(tables.axes[axis].axis));
    }
    launch(table_kernel<A>, dim3(static_cast<unsigned>(runs), static_cast<unsigned>(tables.count)),
           dim3(kBlock), 0, stream, tables);
    each(group);
  }
}

/// Results of the forward direction. Without a map there are neither `max` nor `top`.
template <typename A>
struct Outputs {
  A *map, *mean, *max, *top;   // [samples, height, width], or null; [samples]; [samples]; [samples, shares]
  std::vector<double> shares;  // of the pixels
};

/// Bytes of scratch memory for launch_anomaly_map.
template <typename A>
int64_t scratch_bytes(const Problem<A>& problem, bool with_map) {
  Scratch scratch(nullptr);
  plan_scales(problem, scratch);
  if (with_map) scratch.take<Extremes<A>>(problem.samples * problem.tiles());
  return scratch.bytes();
}

template <typename A>
void launch_scores(const Problem<A>& problem, const Outputs<A>& outputs, const Extremes<A>* extremes,
                   cudaStream_t stream) {
  const int64_t pixels = problem.height * problem.width;
  Scores<A> scores{outputs.map,
                   extremes,
                   outputs.max,
                   outputs.top,
                   problem.samples,
                   static_cast<int>(pixels),
                   problem.tiles(),
                   takes_packs(outputs.map, pixels),
                   {},
                   0,
                   0,
                   static_cast<int>(outputs.shares.size())};
  do {  // once too where there is no share, for the maximum
    scores.count = std::min(scores.all - scores.first, kShares);
    for (int i = 0; i < scores.count; ++i) {
      scores.counts[i] =
          static_cast<int>(count_of(outputs.shares[static_cast<size_t>(scores.first + i)], pixels));
    }
    launch(scores_kernel<A>,
           dim3(static_cast<unsigned>(std::max(scores.count, 1)), samples_in_grid(problem.samples)),
           dim3(kScoreBlock), 0, stream, scores);
    scores.first += kShares;
  } while (scores.first < scores.all);
}

/// There must be a sample and a scale.
template <typename A>
void launch_anomaly_map(const Problem<A>& problem, const Outputs<A>& outputs, void* memory,
                        cudaStream_t stream) {
  Scratch scratch(memory);
  const std::vector<Scale<A>> scales = plan_scales(problem, scratch);
  const int tiles = outputs.map != nullptr ? problem.tiles() : 0;
  Extremes<A>* extremes = scratch.take<Extremes<A>>(problem.samples * tiles);
  for_groups(problem, scales, stream, [&](const Group<A>& group) {
    launch(map_kernel<A>, dim3(static_cast<unsigned>(tiles + 1), samples_in_grid(problem.samples)),
           dim3(kBlock), 0, stream, group, MapResults<A>{outputs.map, outputs.mean, extremes}, tiles,
           group.first > 0);
  });
  if (outputs.map != nullptr) launch_scores(problem, outputs, extremes, stream);
}

/// What comes from behind, and the results of the backward direction.
template <typename A>
struct Gradients {
  const A *grad_map, *grad_mean;  // [samples, height, width], or null; [samples]
  std::vector<A*> to_distances;
  A* to_weights;  // [samples, scales], or null
};

/// Room for the tables and, if the map has a gradient, for what is gathered along its rows.
template <typename A>
std::vector<Scale<A>> plan_gradients(const Problem<A>& problem, bool with_map, Scratch& scratch) {
  std::vector<Scale<A>> scales = plan_scales(problem, scratch);
  for (Scale<A>& scale : scales) {
    if (with_map) scale.gathered = scratch.take<A>(problem.samples * scale.rows.axis.source * problem.width);
  }
  return scales;
}

/// Bytes of scratch memory for launch_anomaly_map_gradients.
template <typename A>
int64_t gradient_scratch_bytes(const Problem<A>& problem, bool with_map) {
  Scratch scratch(nullptr);
  plan_gradients(problem, with_map, scratch);
  return scratch.bytes();
}

/// There must be a sample and a scale.
template <typename A>
void launch_anomaly_map_gradients(const Problem<A>& problem, const Gradients<A>& gradients, void* memory,
                                  cudaStream_t stream) {
  const bool with_map = gradients.grad_map != nullptr;
  Scratch scratch(memory);
  std::vector<Scale<A>> scales = plan_gradients(problem, with_map, scratch);
  int64_t blocks = 1;
  for (size_t k = 0; k < scales.size(); ++k) {
    scales[k].to_distances = gradients.to_distances[k];
    blocks = std::max(blocks, scales[k].rows.axis.source);
  }
  const unsigned samples = samples_in_grid(problem.samples);
  for_groups(problem, scales, stream, [&](const Group<A>& group) {
    const unsigned count = static_cast<unsigned>(group.count);
    if (with_map) {
      launch(gather_kernel<A>, dim3(static_cast<unsigned>(blocks), samples, count), dim3(kBlock), 0, stream,
             group, gradients.grad_map);
    }
    launch(distance_gradients_kernel<A>, dim3(count, samples), dim3(kBlock), 0, stream, group,
           gradients.grad_mean, gradients.to_weights, with_map);
  });
}

}  // namespace scrd::maps
