// SPDX-License-Identifier: Apache-2.0
// A block takes a run of pixels of one image and scale, reads it in packs of 16 bytes, and splits the
// channels over its threads, so that one image alone fills a GPU. How a run is split follows from the number
// of channels and the layout alone, never from alignment: where packs cannot be read, their elements are read
// one by one.
#pragma once

#include "common/pack.cuh"
#include "cosine_distances/cosine_distances.h"

namespace scrd::cosine {

constexpr int kScales = 8;  // of one launch
constexpr int kBlock = 256, kWarps = kBlock / 32;
constexpr int kLanes = 8;   // at most so many packs of pixels in a run of planes: one line of the cache
constexpr int kUnroll = 4;  // packs of each feature that a thread has on their way

/// Of all threads that read a pixel's channels, one reads about 8 packs: enough are in flight in time, and
/// the runs of a deep and small map are as many as those of a flat and large one.
inline int lanes_of(const Maps& maps) {
  if (maps.rows) return maps.channels <= 256 ? 8 : maps.channels <= 512 ? 16 : 32;  // packs of channels
  return maps.channels <= 256 ? kLanes : kLanes / 2;                                // packs of pixels
}

template <typename A>
struct Scale {
  Maps maps;
  int lanes;     // planes: lanes beside each other take packs of pixels; rows: packs of a pixel's channels
  bool packs;    // whether they can be read
  int64_t runs;  // of an image
  A* distances;  // [samples, pixels]
  // Backward only. What comes from behind is [samples, pixels]; the gradients lie as the features do.
  const A* grads;
  void *to_teacher, *to_student;  // to_teacher may be null
};

template <typename A>
struct Batch {
  Scale<A> scales[kScales];
  int64_t ends[kScales];  // of the scales, in runs of all images
  int count;
  A eps;
};

/// Where a thread's packs lie: number i, of first, first + step ... below end, is at i times a feature's
/// stride.
template <typename T>
struct Walk {
  int64_t teacher_at, student_at, teacher_stride, student_stride;
  int64_t pixel;         // planes: the pack's first one
  int first, step, end;  // numbers of packs
  int whole;             // below this they are read at once, from there on as parts
  int64_t live;          // elements of pack 0 and of all that follow
  int used;              // by each pack
  __device__ int64_t part(int i) const { return live - static_cast<int64_t>(i) * used; }
};

template <typename T, typename A>
__device__ Walk<T> walk_planes(const Scale<A>& scale, int64_t n, int64_t run) {
  constexpr int kPack = Pack<T>::kSize;
  const Maps& maps = scale.maps;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % scale.lanes;
  Walk<T> walk;
  walk.pixel = (run * scale.lanes + lane) * kPack;
  walk.teacher_at = n * maps.teacher_strides[0] + walk.pixel;
  walk.student_at = n * maps.student_strides[0] + walk.pixel;
  walk.teacher_stride = maps.teacher_strides[1];
  walk.student_stride = maps.student_strides[1];
  walk.live = maps.pixels() - walk.pixel;
  walk.used = 0;
  walk.first = thread / scale.lanes;
  walk.step = kBlock / scale.lanes;
  walk.end = walk.live > 0 ? static_cast<int>(maps.channels) : 0;
  walk.whole = scale.packs && walk.live >= kPack ? walk.end : 0;
  return walk;
}

template <typename T, typename A>
__device__ Walk<T> walk_rows(const Scale<A>& scale, int64_t n, int64_t run) {
  constexpr int kPack = Pack<T>::kSize;
  const Maps& maps = scale.maps;
  const int thread = static_cast<int>(threadIdx.x), channels = static_cast<int>(maps.channels);
  Walk<T> walk;
  walk.pixel = run * (kBlock / scale.lanes) + thread / scale.lanes;
  const uint32_t width = static_cast<uint32_t>(maps.width);
  const int64_t row = static_cast<uint32_t>(walk.pixel) / width,
                column = static_cast<uint32_t>(walk.pixel) % width;
  const int64_t *to = maps.teacher_strides, *so = maps.student_strides;
  walk.teacher_at = n * to[0] + row * to[2] + column * to[3];
  walk.student_at = n * so[0] + row * so[2] + column * so[3];
  walk.teacher_stride = walk.student_stride = kPack;
  walk.live = channels;
  walk.used = kPack;
  walk.first = thread % scale.lanes;
  walk.step = scale.lanes;
  walk.end = walk.pixel < maps.pixels() ? (channels + kPack - 1) / kPack : 0;
  walk.whole = walk.end == 0 || !scale.packs ? 0 : channels / kPack;
  return walk;
}

template <typename A>
__device__ void add(Dots<A>& dots, const Dots<A>& more) {
  dots.both += more.both;
  dots.teacher += more.teacher;
  dots.student += more.student;
}

/// One pixel (planes) or one share of a pixel's channels (rows) for each element of a pack.
template <typename T, typename A>
__device__ void add_products(Dots<A>* dots, const Pack<T>& teacher, const Pack<T>& student) {
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    const A t = static_cast<A>(teacher.v[i]), s = static_cast<A>(student.v[i]);
    dots[i].both = multiply_add(t, s, dots[i].both);
    dots[i].teacher = multiply_add(t, t, dots[i].teacher);
    dots[i].student = multiply_add(s, s, dots[i].student);
  }
}

template <typename T, typename A>
__device__ void sum_products(Dots<A>* dots, const Maps& maps, const Walk<T>& walk) {
  const T* teacher = static_cast<const T*>(maps.teacher) + walk.teacher_at;
  const T* student = static_cast<const T*>(maps.student) + walk.student_at;
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) dots[i] = {0, 0, 0};
  int at = walk.first;
  for (; at + (kUnroll - 1) * walk.step < walk.whole; at += kUnroll * walk.step) {
    Pack<T> t[kUnroll], s[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      t[u] = load_pack(teacher + (at + u * walk.step) * walk.teacher_stride);
      s[u] = load_pack(student + (at + u * walk.step) * walk.student_stride);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) add_products(dots, t[u], s[u]);
  }
  for (; at < walk.whole; at += walk.step) {
    add_products(dots, load_pack(teacher + at * walk.teacher_stride),
                 load_pack(student + at * walk.student_stride));
  }
  for (; at < walk.end; at += walk.step) {
    add_products(dots, load_part(teacher + at * walk.teacher_stride, walk.part(at)),
                 load_part(student + at * walk.student_stride, walk.part(at)));
  }
}

/// Over lanes whose numbers differ in the bits from..to, a power of two each; the same bits in all of them.
template <typename A>
__device__ void add_lanes(Dots<A>& dots, int from, int to) {
  for (int bits = from; bits < to; bits *= 2) {
    add(dots, {__shfl_xor_sync(~0u, dots.both, bits), __shfl_xor_sync(~0u, dots.teacher, bits),
               __shfl_xor_sync(~0u, dots.student, bits)});
  }
}

/// The dots of a run's pixels in planes, each for the thread of its number.
template <typename T, typename A>
__device__ Dots<A> join_planes(Dots<A>* dots, int lanes,
                               SharedArray<Dots<A>, kWarps * kLanes * Pack<T>::kSize>& partial) {
  constexpr int kPack = Pack<T>::kSize;
  const int thread = static_cast<int>(threadIdx.x), pixels = lanes * kPack;
  __syncthreads();  // the partial sums of the run before may still be read
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    add_lanes(dots[i], lanes, 32);
    if (thread % 32 < lanes) partial[thread / 32 * pixels + thread % 32 * kPack + i] = dots[i];
  }
  __syncthreads();
  Dots<A> sum{0, 0, 0};
  if (thread >= pixels) return sum;
  for (int warp = 0; warp < kWarps; ++warp) add(sum, partial[warp * pixels + thread]);
  return sum;
}

/// The dots of a pixel in rows, for all lanes that have read it.
template <typename T, typename A>
__device__ Dots<A> join_row(Dots<A>* dots, int lanes) {
#pragma unroll
  for (int i = 1; i < Pack<T>::kSize; ++i) add(dots[0], dots[i]);
  add_lanes(dots[0], 1, lanes);
  return dots[0];
}

/// A run's scale, image and number there.
template <typename A>
struct Run {
  int scale;
  int64_t sample, number;
  __device__ Run(const Batch<A>& batch, int64_t at) : scale(0) {
    while (at >= batch.ends[scale]) ++scale;
    if (scale > 0) at -= batch.ends[scale - 1];
    sample = at / batch.scales[scale].runs;
    number = at % batch.scales[scale].runs;
  }
};

// Three blocks a multiprocessor: with more, the compiler gives a thread too few registers for kUnroll packs
// on their way, and loads them one after the other.
template <typename T, typename A>
static __global__ void __launch_bounds__(kBlock, 3) distances_kernel(Batch<A> batch) {
  constexpr int kPack = Pack<T>::kSize;
  __shared__ SharedArray<Dots<A>, kWarps * kLanes * kPack> partial;
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t at = blockIdx.x; at < batch.ends[batch.count - 1]; at += gridDim.x) {
    const Run<A> run(batch, at);
    const Scale<A>& scale = batch.scales[run.scale];
    const bool rows = scale.maps.rows;
    const Walk<T> walk =
        rows ? walk_rows<T>(scale, run.sample, run.number) : walk_planes<T>(scale, run.sample, run.number);
    Dots<A> dots[kPack];
    sum_products(dots, scale.maps, walk);
    const Dots<A> joined = rows ? join_row<T>(dots, scale.lanes) : join_planes<T>(dots, scale.lanes, partial);
    const int64_t pixel = rows ? walk.pixel : run.number * scale.lanes * kPack + thread;
    const bool writes = rows ? thread % scale.lanes == 0 : thread < scale.lanes * kPack;
    if (writes && pixel < scale.maps.pixels()) {
      const A found = distance(joined.both, joined.teacher, joined.student, batch.eps);
      scale.distances[run.sample * scale.maps.pixels() + pixel] = found;
    }
  }
}

// -----------------------------------------------------------------------------------------------------------
// gradients

template <typename A>
struct PixelSlopes {
  Slopes<A> student, teacher;
};

/// Of a pixel that may lie beyond the image.
template <typename A>
__device__ PixelSlopes<A> pixel_slopes(const Scale<A>& scale, int64_t n, int64_t pixel, const Dots<A>& dots,
                                       A eps) {
  if (pixel >= scale.maps.pixels()) return {{0, 0}, {0, 0}};
  const A grad = scale.grads[n * scale.maps.pixels() + pixel];
  return {slopes(dots.both, dots.student, dots.teacher, grad, eps),
          slopes(dots.both, dots.teacher, dots.student, grad, eps)};
}

/// The gradient of a pack of `of`.
template <typename T, typename A>
__device__ Pack<T> gradient(const Pack<T>& of, const Pack<T>& to, const Slopes<A>* slope) {
  Pack<T> result;
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    result.v[i] = static_cast<T>(
        multiply_add(slope[i].own, static_cast<A>(of.v[i]), slope[i].other * static_cast<A>(to.v[i])));
  }
  return result;
}

/// The same packs again, which lie in the caches by now.
template <typename T, typename A>
__device__ void write_gradients(const Scale<A>& scale, const Walk<T>& walk, const Slopes<A>* to_student,
                                const Slopes<A>* to_teacher) {
  const T* teacher = static_cast<const T*>(scale.maps.teacher) + walk.teacher_at;
  const T* student = static_cast<const T*>(scale.maps.student) + walk.student_at;
  T* student_grad = static_cast<T*>(scale.to_student) + walk.student_at;
  T* teacher_grad =
      scale.to_teacher != nullptr ? static_cast<T*>(scale.to_teacher) + walk.teacher_at : nullptr;
  for (int at = walk.first; at < walk.end; at += walk.step) {
    const int64_t t_at = at * walk.teacher_stride, s_at = at * walk.student_stride, part = walk.part(at);
    const bool whole = at < walk.whole;
    const Pack<T> t = whole ? load_pack(teacher + t_at) : load_part(teacher + t_at, part);
    const Pack<T> s = whole ? load_pack(student + s_at) : load_part(student + s_at, part);
    const Pack<T> to_s = gradient(s, t, to_student);
    whole ? store_pack(student_grad + s_at, to_s) : store_part(student_grad + s_at, to_s, part);
    if (teacher_grad == nullptr) continue;
    const Pack<T> to_t = gradient(t, s, to_teacher);
    whole ? store_pack(teacher_grad + t_at, to_t) : store_part(teacher_grad + t_at, to_t, part);
  }
}

template <typename T, typename A>
static __global__ void __launch_bounds__(kBlock, 2) gradients_kernel(Batch<A> batch) {
  constexpr int kPack = Pack<T>::kSize;
  __shared__ SharedArray<Dots<A>, kWarps * kLanes * kPack> partial;
  __shared__ SharedArray<PixelSlopes<A>, kLanes * kPack> shared;
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t at = blockIdx.x; at < batch.ends[batch.count - 1]; at += gridDim.x) {
    const Run<A> run(batch, at);
    const Scale<A>& scale = batch.scales[run.scale];
    const bool rows = scale.maps.rows;
    const Walk<T> walk =
        rows ? walk_rows<T>(scale, run.sample, run.number) : walk_planes<T>(scale, run.sample, run.number);
    Dots<A> dots[kPack];
    sum_products(dots, scale.maps, walk);
    const Dots<A> joined = rows ? join_row<T>(dots, scale.lanes) : join_planes<T>(dots, scale.lanes, partial);
    const int64_t pixel = rows ? walk.pixel : run.number * scale.lanes * kPack + thread;
    const PixelSlopes<A> own = pixel_slopes(scale, run.sample, pixel, joined, batch.eps);
    if (!rows && thread < scale.lanes * kPack) shared[thread] = own;
    __syncthreads();
    Slopes<A> to_student[kPack], to_teacher[kPack];
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const PixelSlopes<A> of = rows ? own : shared[thread % scale.lanes * kPack + i];
      to_student[i] = of.student;
      to_teacher[i] = of.teacher;
    }
    write_gradients(scale, walk, to_student, to_teacher);
  }
}

// -----------------------------------------------------------------------------------------------------------
// launchers

/// What backward takes and gives beside the features, a pointer for each scale.
template <typename A>
struct Gradients {
  const A* const* grads;    // [samples, pixels]
  void* const* to_teacher;  // null, or as the features
  void* const* to_student;
};

template <typename T, typename A>
Scale<A> make_scale(const Maps& maps, void* to_teacher, void* to_student) {
  const int64_t *ts = maps.teacher_strides, *ss = maps.student_strides;
  const auto readable = [&](const void* data, const int64_t* strides) {
    const T* first = static_cast<const T*>(data);
    return maps.rows ? takes_packs(first, strides[0], strides[2], strides[3])
                     : takes_packs(first, strides[0], strides[1]);
  };
  const int lanes = lanes_of(maps);
  const int64_t pixels = maps.rows ? kBlock / lanes : lanes * Pack<T>::kSize;  // of a run
  return {maps,
          lanes,
          readable(maps.teacher, ts) && readable(maps.student, ss) && readable(to_teacher, ts) &&
              readable(to_student, ss),
          (maps.pixels() + pixels - 1) / pixels,
          nullptr,
          nullptr,
          to_teacher,
          to_student};
}

/// In one launch for each kScales scales. `complete(scale, k)` adds the pointers of scale k.
template <typename T, typename A, typename Complete>
void launch_batches(void (*kernel)(Batch<A>), const Maps* scales, int64_t count, double eps,
                    cudaStream_t stream, const Complete& complete) {
  constexpr int64_t kMaxGrid = 0x7fffffff;
  for (int64_t first = 0; first < count; first += kScales) {
    Batch<A> batch{};
    batch.eps = static_cast<A>(eps);
    batch.count = static_cast<int>(count - first < kScales ? count - first : kScales);
    int64_t runs = 0;
    for (int k = 0; k < batch.count; ++k) {
      batch.scales[k] = complete(scales[first + k], first + k);
      batch.ends[k] = runs += scales[first + k].samples * batch.scales[k].runs;
    }
    if (runs == 0) continue;
    launch(kernel, dim3(static_cast<unsigned>(runs < kMaxGrid ? runs : kMaxGrid)), dim3(kBlock), 0, stream,
           batch);
  }
}

/// Fills `out`, a pointer to [samples, pixels] for each of `count` scales. A map has fewer than 2^31 pixels
/// and channels.
template <typename T, typename A>
void launch_distances(const Maps* scales, int64_t count, A* const* out, double eps, cudaStream_t stream) {
  launch_batches<T, A>(distances_kernel<T, A>, scales, count, eps, stream, [&](const Maps& maps, int64_t k) {
    Scale<A> scale = make_scale<T, A>(maps, nullptr, nullptr);
    scale.distances = out[k];
    return scale;
  });
}

/// The features must be dense; the gradients lie as they do.
template <typename T, typename A>
void launch_gradients(const Maps* scales, int64_t count, const Gradients<A>& gradients, double eps,
                      cudaStream_t stream) {
  launch_batches<T, A>(gradients_kernel<T, A>, scales, count, eps, stream, [&](const Maps& maps, int64_t k) {
    Scale<A> scale = make_scale<T, A>(
        maps, gradients.to_teacher != nullptr ? gradients.to_teacher[k] : nullptr, gradients.to_student[k]);
    scale.grads = gradients.grads[k];
    return scale;
  });
}

}  // namespace scrd::cosine
