// SPDX-License-Identifier: Apache-2.0
// The largest pixels of a map, by counting: a histogram between the lowest and the highest key, again for the
// bin that holds the pixel sought, until a bin is one key.
#pragma once

#include "anomaly_map/anomaly_map.h"
#include "common/pack.cuh"

namespace scrd::maps {

constexpr int kScoreBlock = 1024, kScoreWarps = kScoreBlock / 32;
constexpr int kBins = 8192, kThreadBins = kBins / kScoreBlock;

/// Of the keys of some pixels.
template <typename A>
struct Extremes {
  typename KeyOf<A>::Type lowest, highest;  // the latter is kNanKey if there is a NaN

  static constexpr typename KeyOf<A>::Type kNanKey = ~typename KeyOf<A>::Type{0};  // no number has it
  __device__ void take(const Extremes& other) {
    if (other.lowest < lowest) lowest = other.lowest;
    if (other.highest > highest) highest = other.highest;
  }
};

/// For thread 0. All threads must call it.
template <typename A, int kCount>
__device__ Extremes<A> block_extremes(Extremes<A> mine, SharedArray<Extremes<A>, kCount>& warps) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int bits = 16; bits > 0; bits /= 2) {
    const Extremes<A> other{__shfl_xor_sync(~0u, mine.lowest, bits),
                            __shfl_xor_sync(~0u, mine.highest, bits)};
    mine.take(other);
  }
  __syncthreads();  // those before may still be read
  if (thread % 32 == 0) warps[thread / 32] = mine;
  __syncthreads();
  if (thread == 0) {
    for (int warp = 1; warp < kCount; ++warp) mine.take(warps[warp]);
  }
  return mine;
}

template <typename A>
struct ScoreShared {
  SharedArray<uint32_t, kBins> bins;
  SharedArray<int, kScoreWarps> counts;
  SharedArray<A, kScoreWarps> sums;
  SharedArray<Extremes<A>, kScoreWarps> extremes;
  SharedArray<int, 2> found;  // the bin, and how many pixels lie in higher ones
};

/// The pixels of one image.
template <typename A>
struct Pixels {
  const A* data;
  int count;
  bool packs;  // whether they can be read so
};

/// Calls body(value) for the block's pixels, in an order that does not depend on alignment.
template <typename A, typename Body>
__device__ __forceinline__ void for_pixels(const Pixels<A>& pixels, const Body& body) {
  constexpr int kPack = Pack<A>::kSize;
  const int packs = (pixels.count - 1) / kPack + 1;
#pragma unroll 4
  for (int at = static_cast<int>(threadIdx.x); at < packs; at += kScoreBlock) {
    const A* data = pixels.data + static_cast<int64_t>(at) * kPack;
    const int64_t left = pixels.count - static_cast<int64_t>(at) * kPack;
    const Pack<A> pack = pixels.packs ? load_pack(data) : load_part(data, left);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (i < left) body(pack.v[i]);
    }
  }
}

/// Finds the bin of the `wanted`-th largest of all that were counted. A thread has kThreadBins bins, thread 0
/// the highest ones.
template <typename A>
__device__ void find_bin(ScoreShared<A>& shared, int wanted) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int highest = kBins - 1 - thread * kThreadBins;
  int mine = 0;
  for (int i = 0; i < kThreadBins; ++i) mine += static_cast<int>(shared.bins[highest - i]);
  int until = mine;  // pixels in this thread's bins and in higher ones of its warp
  for (unsigned by = 1; by < 32; by *= 2) {
    const int other = __shfl_up_sync(~0u, until, by);
    if (lane >= static_cast<int>(by)) until += other;
  }
  if (lane == 31) shared.counts[warp] = until;
  __syncthreads();
  for (int w = 0; w < warp; ++w) until += shared.counts[w];
  int above = until - mine;
  if (above < wanted && wanted <= until) {  // one thread
    int bin = highest;
    for (; above + static_cast<int>(shared.bins[bin]) < wanted; --bin)
      above += static_cast<int>(shared.bins[bin]);
    shared.found[0] = bin;
    shared.found[1] = above;
  }
  __syncthreads();
}

/// The mean of the `count` largest of pixels whose keys lie in `range`; for thread 0.
template <typename A>
__device__ __forceinline__ double mean_of_top(const Pixels<A>& pixels, Extremes<A> range, int count,
                                              ScoreShared<A>& shared) {
  using Key = typename KeyOf<A>::Type;
  int above = 0;  // pixels beyond the range
  while (range.lowest < range.highest) {
    int shift = 0;
    while ((range.highest - range.lowest) >> shift >= kBins) ++shift;
    for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kScoreBlock) shared.bins[bin] = 0;
    __syncthreads();
    for_pixels(pixels, [&](A value) {
      const Key key = key_of(value);
      if (key < range.lowest || key > range.highest) return;
      atomicAdd(&shared.bins[static_cast<int>((key - range.lowest) >> shift)], 1u);
    });
    __syncthreads();
    find_bin(shared, count - above);
    above += shared.found[1];
    range.lowest += static_cast<Key>(shared.found[0]) << shift;
    const Key last = range.lowest + ((Key{1} << shift) - 1);
    if (last < range.highest) range.highest = last;
  }
  A sum = 0;
  for_pixels(pixels, [&](A value) {
    if (key_of(value) > range.highest) sum += value;
  });
  sum = block_sum(sum, shared.sums);
  const double least = static_cast<double>(value_of<A>(range.highest));
  return (static_cast<double>(sum) + static_cast<double>(count - above) * least) / static_cast<double>(count);
}

}  // namespace scrd::maps
