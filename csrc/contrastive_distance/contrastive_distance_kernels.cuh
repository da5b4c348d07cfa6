// SPDX-License-Identifier: Apache-2.0
// A block sums a chunk of one sample's values, in packs of 16 bytes; a second, small launch adds up the
// chunks. How values are shared out over chunks and threads follows from their number alone, never from
// alignment: where packs cannot be read, their elements are read one by one.
#pragma once

#include "common/pack.cuh"
#include "contrastive_distance/contrastive_distance.h"

namespace scrd::contrastive {

constexpr int kScales = 8;  // of one launch
constexpr int kBlock = 256, kWarps = kBlock / 32;
constexpr int kUnroll = 2;  // packs of each map that a thread has on their way

template <typename A>
struct Scale {
  Maps maps;
  bool packs;      // whether they can be read
  A* partial;      // [samples, chunks, kDots]: of the first launch, for the second
  int64_t number;  // among all scales
  // Backward only: dense, in the maps' order; the teachers' may be null.
  void *to_clean, *to_noisy, *to_student;
};

/// Numbers of each sample and scale, [samples, all scales] and [samples, all scales, kDots]; what belongs to
/// the noisy teacher may be null.
template <typename A, typename Number>
struct Numbers {
  Number *clean, *noisy;
  A* dots;
  int64_t scales;  // all of them
};

template <typename A>
struct Batch {
  Scale<A> scales[kScales];
  int64_t ends[kScales];  // of the scales, in chunks (or samples) of all images
  int count;
  A eps;
};

/// Which scale and sample number `at` of a batch is, and which chunk there.
template <typename A>
struct Place {
  int scale;
  int64_t sample, chunk;
  __device__ Place(const Batch<A>& batch, int64_t at, bool chunks) : scale(0) {
    while (at >= batch.ends[scale]) ++scale;
    if (scale > 0) at -= batch.ends[scale - 1];
    const int64_t of_sample = chunks ? batch.scales[scale].maps.chunks() : 1;
    sample = at / of_sample;
    chunk = at % of_sample;
  }
};

/// The values of a chunk, which thread t reads in packs t, t + kBlock, ...
template <typename T>
struct Chunk {
  const T *clean, *noisy, *student;
  int64_t first;     // value
  int count, whole;  // values; of packs that can be read at once
  template <typename A>
  __device__ Chunk(const Scale<A>& scale, const Place<A>& place) {
    const Maps& maps = scale.maps;
    first = place.chunk * kChunk;
    const int64_t left = maps.values - first;
    count = static_cast<int>(left < kChunk ? left : kChunk);
    whole = scale.packs ? count / Pack<T>::kSize : 0;
    clean = static_cast<const T*>(maps.clean) + place.sample * maps.clean_stride + first;
    student = static_cast<const T*>(maps.student) + place.sample * maps.student_stride + first;
    noisy = nullptr;
    if (maps.noisy != nullptr) {
      noisy = static_cast<const T*>(maps.noisy) + place.sample * maps.noisy_stride + first;
    }
  }
  __device__ int packs() const { return (count + Pack<T>::kSize - 1) / Pack<T>::kSize; }
  /// Pack number `i` of a map's part of the chunk; zeros behind its end.
  __device__ Pack<T> load(const T* of, int i) const {
    const int at = i * Pack<T>::kSize;
    return i < whole ? load_pack(of + at) : load_part(of + at, count - at);
  }
};

template <typename T, typename A>
__device__ void add_products(Dots<A>& dots, const Pack<T>& clean, const Pack<T>& noisy,
                             const Pack<T>& student) {
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    const A c = static_cast<A>(clean.v[i]), n = static_cast<A>(noisy.v[i]), s = static_cast<A>(student.v[i]);
    dots.clean_student = multiply_add(c, s, dots.clean_student);
    dots.noisy_student = multiply_add(n, s, dots.noisy_student);
    dots.clean = multiply_add(c, c, dots.clean);
    dots.noisy = multiply_add(n, n, dots.noisy);
    dots.student = multiply_add(s, s, dots.student);
  }
}

template <typename T>
__device__ Pack<T> no_pack() {
  return load_part<T>(nullptr, 0);
}

/// go(i, clean, noisy, student) for each of a thread's packs of a chunk. Of those that can be read at once,
/// kUnroll are read before the first is used.
template <typename T, bool kNoisy, typename Go>
__device__ void for_packs(const Chunk<T>& chunk, const Go& go) {
  int at = static_cast<int>(threadIdx.x);
  for (; at + (kUnroll - 1) * kBlock < chunk.whole; at += kUnroll * kBlock) {
    Pack<T> c[kUnroll], n[kUnroll], s[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int element = (at + u * kBlock) * Pack<T>::kSize;
      c[u] = load_pack(chunk.clean + element);
      n[u] = kNoisy ? load_pack(chunk.noisy + element) : no_pack<T>();
      s[u] = load_pack(chunk.student + element);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) go(at + u * kBlock, c[u], n[u], s[u]);
  }
  for (; at < chunk.packs(); at += kBlock) {
    go(at, chunk.load(chunk.clean, at), kNoisy ? chunk.load(chunk.noisy, at) : no_pack<T>(),
       chunk.load(chunk.student, at));
  }
}

/// A thread's share of a chunk.
template <typename T, typename A, bool kNoisy>
__device__ Dots<A> sum_chunk(const Chunk<T>& chunk) {
  Dots<A> dots{0, 0, 0, 0, 0};
  for_packs<T, kNoisy>(
      chunk, [&](int, const Pack<T>& c, const Pack<T>& n, const Pack<T>& s) { add_products(dots, c, n, s); });
  return dots;
}

template <typename T, typename A>
static __global__ void __launch_bounds__(kBlock, 3) sums_kernel(Batch<A> batch) {
  __shared__ SharedArray<A, kWarps> warps;
  for (int64_t at = blockIdx.x; at < batch.ends[batch.count - 1]; at += gridDim.x) {
    const Place<A> place(batch, at, true);
    const Scale<A>& scale = batch.scales[place.scale];
    const Chunk<T> chunk(scale, place);
    const Dots<A> own = chunk.noisy != nullptr ? sum_chunk<T, A, true>(chunk) : sum_chunk<T, A, false>(chunk);
    const A sums[kDots] = {block_sum(own.clean_student, warps), block_sum(own.noisy_student, warps),
                           block_sum(own.clean, warps), block_sum(own.noisy, warps),
                           block_sum(own.student, warps)};
    if (threadIdx.x != 0) continue;
    A* to = scale.partial + (place.sample * scale.maps.chunks() + place.chunk) * kDots;
    for (int i = 0; i < kDots; ++i) to[i] = sums[i];
  }
}

/// The sum of one of the dots over a sample's chunks, in every lane of a warp.
template <typename A>
__device__ double sum_partial(const A* partial, int64_t chunks, int dot) {
  double sum = 0;
  for (int64_t chunk = threadIdx.x % 32; chunk < chunks; chunk += 32) {
    sum += static_cast<double>(partial[chunk * kDots + dot]);
  }
  return warp_sum(sum);
}

/// A warp for each sample and scale.
template <typename A>
static __global__ void __launch_bounds__(kBlock)
    finish_kernel(Batch<A> batch, Numbers<A, A> out, double eps) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps + warp; at < batch.ends[batch.count - 1];
       at += step) {
    const Place<A> place(batch, at, false);
    const Scale<A>& scale = batch.scales[place.scale];
    const int64_t chunks = scale.maps.chunks(), item = place.sample * out.scales + scale.number;
    double sums[kDots];
#pragma unroll
    for (int dot = 0; dot < kDots; ++dot) {
      sums[dot] = sum_partial(scale.partial + place.sample * chunks * kDots, chunks, dot);
    }
    if (lane != 0) continue;
#pragma unroll
    for (int dot = 0; dot < kDots; ++dot) out.dots[item * kDots + dot] = static_cast<A>(sums[dot]);
    out.clean[item] = static_cast<A>(cosine::distance(sums[0], sums[2], sums[4], eps));
    if (out.noisy == nullptr) continue;
    out.noisy[item] = static_cast<A>(cosine::distance(sums[1], sums[3], sums[4], eps));
  }
}

// -----------------------------------------------------------------------------------------------------------
// gradients

/// a x + b y + c z, rounded once.
template <typename T, typename A>
__device__ Pack<T> combine(A a, const Pack<T>& x, A b, const Pack<T>& y, A c, const Pack<T>& z) {
  Pack<T> result;
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    const A sum = multiply_add(b, static_cast<A>(y.v[i]), a * static_cast<A>(x.v[i]));
    result.v[i] = static_cast<T>(multiply_add(c, static_cast<A>(z.v[i]), sum));
  }
  return result;
}

template <typename T, typename A>
__device__ void write(const Chunk<T>& chunk, const Scale<A>& scale, const Place<A>& place, void* gradient,
                      int i, const Pack<T>& pack) {
  if (gradient == nullptr) return;
  const int at = i * Pack<T>::kSize;
  T* to = static_cast<T*>(gradient) + place.sample * scale.maps.values + chunk.first + at;
  i < chunk.whole ? store_pack(to, pack) : store_part(to, pack, chunk.count - at);
}

template <typename T, typename A, bool kNoisy>
__device__ void write_chunk(const Chunk<T>& chunk, const Scale<A>& scale, const Place<A>& place,
                            const Slopes<A>& slope) {
  const A push = kNoisy ? slope.student_noisy : A(0);
  for_packs<T, kNoisy>(chunk, [&](int i, const Pack<T>& c, const Pack<T>& n, const Pack<T>& s) {
    write(chunk, scale, place, scale.to_student, i,
          combine(slope.student_own, s, slope.student_clean, c, push, n));
    write(chunk, scale, place, scale.to_clean, i,
          combine(slope.clean_own, c, slope.clean_student, s, A(0), s));
    write(chunk, scale, place, scale.to_noisy, i,
          combine(slope.noisy_own, n, slope.noisy_student, s, A(0), s));
  });
}

template <typename T, typename A>
static __global__ void __launch_bounds__(kBlock, 2)
    gradients_kernel(Batch<A> batch, Numbers<const A, const A> from) {
  for (int64_t at = blockIdx.x; at < batch.ends[batch.count - 1]; at += gridDim.x) {
    const Place<A> place(batch, at, true);
    const Scale<A>& scale = batch.scales[place.scale];
    const Chunk<T> chunk(scale, place);
    const int64_t item = place.sample * from.scales + scale.number;
    const A* d = from.dots + item * kDots;
    const Slopes<A> slope = slopes<A>({d[0], d[1], d[2], d[3], d[4]}, from.clean[item],
                                      from.noisy == nullptr ? A(0) : from.noisy[item], batch.eps);
    chunk.noisy != nullptr ? write_chunk<T, A, true>(chunk, scale, place, slope)
                           : write_chunk<T, A, false>(chunk, scale, place, slope);
  }
}

// -----------------------------------------------------------------------------------------------------------
// launchers

/// What the scales of one launch have besides their maps, a pointer for each; those of backward may be null.
template <typename A>
struct Pointers {
  A* const* partial;
  void *const *to_clean, *const *to_noisy, *const *to_student;
};

template <typename T, typename A>
Scale<A> make_scale(const Maps& maps, int64_t number, A* partial, void* to_clean, void* to_noisy,
                    void* to_student) {
  const auto readable = [](const void* data, int64_t stride) {
    return takes_packs(static_cast<const T*>(data), stride);
  };
  const bool packs = readable(maps.clean, maps.clean_stride) && readable(maps.noisy, maps.noisy_stride) &&
                     readable(maps.student, maps.student_stride) && readable(to_clean, maps.values) &&
                     readable(to_noisy, maps.values) && readable(to_student, maps.values);
  return {maps, packs, partial, number, to_clean, to_noisy, to_student};
}

/// In one launch for each kScales scales: go(batch, items) with the number of blocks' or warps' items.
template <typename T, typename A, typename Go>
void for_batches(const Maps* scales, const int64_t* numbers, int64_t count, const Pointers<A>& pointers,
                 double eps, bool chunks, const Go& go) {
  const auto at = [](auto* list, int64_t k) { return list == nullptr ? nullptr : list[k]; };
  for (int64_t first = 0; first < count; first += kScales) {
    Batch<A> batch{};
    batch.eps = static_cast<A>(eps);
    batch.count = static_cast<int>(count - first < kScales ? count - first : kScales);
    int64_t items = 0;
    for (int i = 0; i < batch.count; ++i) {
      const int64_t k = first + i;
      batch.scales[i] =
          make_scale<T, A>(scales[k], numbers[k], at(pointers.partial, k), at(pointers.to_clean, k),
                           at(pointers.to_noisy, k), at(pointers.to_student, k));
      batch.ends[i] = items += scales[k].samples * (chunks ? scales[k].chunks() : 1);
    }
    if (items > 0) go(batch, items);
  }
}

inline dim3 grid_of(int64_t items, int64_t of_a_block = 1) {
  constexpr int64_t kMaxGrid = 0x7fffffff;
  const int64_t blocks = (items + of_a_block - 1) / of_a_block;
  return dim3(static_cast<unsigned>(blocks < kMaxGrid ? blocks : kMaxGrid));
}

/// Fills `partial`, [samples, chunks, kDots] for each of `count` scales; `numbers` are theirs among all.
template <typename T, typename A>
void launch_sums(const Maps* scales, const int64_t* numbers, int64_t count, A* const* partial,
                 cudaStream_t stream) {
  const Pointers<A> pointers{partial, nullptr, nullptr, nullptr};
  for_batches<T, A>(scales, numbers, count, pointers, 0, true, [&](const Batch<A>& batch, int64_t items) {
    launch(sums_kernel<T, A>, grid_of(items), dim3(kBlock), 0, stream, batch);
  });
}

/// From the chunks' sums of all scales to distances and dots.
template <typename A>
void launch_finish(const Maps* scales, const int64_t* numbers, int64_t count, A* const* partial, double eps,
                   const Numbers<A, A>& out, cudaStream_t stream) {
  const Pointers<A> pointers{partial, nullptr, nullptr, nullptr};
  for_batches<A, A>(scales, numbers, count, pointers, eps, false, [&](const Batch<A>& batch, int64_t items) {
    launch(finish_kernel<A>, grid_of(items, kWarps), dim3(kBlock), 0, stream, batch, out, eps);
  });
}

template <typename T, typename A>
void launch_gradients(const Maps* scales, const int64_t* numbers, int64_t count, const Pointers<A>& pointers,
                      double eps, const Numbers<const A, const A>& from, cudaStream_t stream) {
  for_batches<T, A>(scales, numbers, count, pointers, eps, true, [&](const Batch<A>& batch, int64_t items) {
    launch(gradients_kernel<T, A>, grid_of(items), dim3(kBlock), 0, stream, batch, from);
  });
}

}  // namespace scrd::contrastive
