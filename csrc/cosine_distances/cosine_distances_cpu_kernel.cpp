// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, with SCRD_ISA as its name.
//
// In planes, a tile's pixels are lanes: their sums lie in three short arrays, and four channels at a time are
// added to them. In rows, a pixel's channels are lanes: 32 sums side by side, joined in a tree. Either order
// follows from the channels alone.
#include "common/vectors.h"
#include "cosine_distances/cosine_distances_cpu.h"

namespace scrd::cosine::SCRD_ISA {
namespace {

constexpr int kStep = 4;    // channels at a time, in planes
constexpr int kLanes = 32;  // sums side by side, in rows

template <typename A>
struct Sums {
  alignas(64) A both[kTile];
  alignas(64) A teacher[kTile];
  alignas(64) A student[kTile];
};

template <typename T>
const T* at(const void* data, const int64_t* strides, int64_t sample) {
  return static_cast<const T*>(data) + sample * strides[0];
}

// -----------------------------------------------------------------------------------------------------------
// planes

template <int kChannels, typename Vector, typename T, typename A>
void add_lanes(const T* teacher, int64_t teacher_stride, const T* student, int64_t student_stride, A* both,
               A* squared_teacher, A* squared_student) {
  Vector ts = Vector::load(both), tt = Vector::load(squared_teacher), ss = Vector::load(squared_student);
#pragma GCC unroll 4
  for (int c = 0; c < kChannels; ++c) {
    const Vector t = Vector::load(teacher + c * teacher_stride),
                 s = Vector::load(student + c * student_stride);
    ts = multiply_add(t, s, ts);
    tt = multiply_add(t, t, tt);
    ss = multiply_add(s, s, ss);
  }
  ts.store(both);
  tt.store(squared_teacher);
  ss.store(squared_student);
}

template <int kChannels, typename T, typename A>
void add_channels(const T* teacher, int64_t teacher_stride, const T* student, int64_t student_stride,
                  int count, Sums<A>& sums) {
  using Vector = typename VectorOf<T>::Type;
  int i = 0;
  for (; i + Vector::kLanes <= count; i += Vector::kLanes) {
    add_lanes<kChannels, Vector>(teacher + i, teacher_stride, student + i, student_stride, sums.both + i,
                                 sums.teacher + i, sums.student + i);
  }
  for (; i < count; ++i) {
    add_lanes<kChannels, One<A>>(teacher + i, teacher_stride, student + i, student_stride, sums.both + i,
                                 sums.teacher + i, sums.student + i);
  }
}

template <typename T, typename A>
void sum_planes(const Maps& maps, const Tile& tile, Sums<A>& sums) {
  for (int i = 0; i < tile.count; ++i) sums.both[i] = sums.teacher[i] = sums.student[i] = 0;
  const T* teacher = at<T>(maps.teacher, maps.teacher_strides, tile.sample) + tile.first;
  const T* student = at<T>(maps.student, maps.student_strides, tile.sample) + tile.first;
  const int64_t teacher_stride = maps.teacher_strides[1], student_stride = maps.student_strides[1];
  int64_t c = 0;
  for (; c + kStep <= maps.channels; c += kStep) {
    add_channels<kStep>(teacher + c * teacher_stride, teacher_stride, student + c * student_stride,
                        student_stride, tile.count, sums);
  }
  for (; c < maps.channels; ++c) {
    add_channels<1>(teacher + c * teacher_stride, teacher_stride, student + c * student_stride,
                    student_stride, tile.count, sums);
  }
}

// -----------------------------------------------------------------------------------------------------------
// rows

template <typename A>
A sum_tree(A* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

template <typename T, typename A>
Dots<A> sum_row(const T* teacher, const T* student, int64_t channels) {
  using Vector = typename VectorOf<T>::Type;
  constexpr int kVectors = kLanes / Vector::kLanes;
  Vector ts[kVectors], tt[kVectors], ss[kVectors];
#pragma GCC unroll 32
  for (int v = 0; v < kVectors; ++v) ts[v] = tt[v] = ss[v] = Vector::all(0);
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
#pragma GCC unroll 32
    for (int v = 0; v < kVectors; ++v) {
      const int64_t lane = c + v * Vector::kLanes;
      const Vector t = Vector::load(teacher + lane), s = Vector::load(student + lane);
      ts[v] = multiply_add(t, s, ts[v]);
      tt[v] = multiply_add(t, t, tt[v]);
      ss[v] = multiply_add(s, s, ss[v]);
    }
  }
  alignas(64) A lanes[3][kLanes];
#pragma GCC unroll 32
  for (int v = 0; v < kVectors; ++v) {
    ts[v].store(lanes[0] + v * Vector::kLanes);
    tt[v].store(lanes[1] + v * Vector::kLanes);
    ss[v].store(lanes[2] + v * Vector::kLanes);
  }
  for (int i = 0; c + i < channels; ++i) {
    const A t = widen(teacher[c + i]), s = widen(student[c + i]);
    lanes[0][i] = multiply_add(t, s, lanes[0][i]);
    lanes[1][i] = multiply_add(t, t, lanes[1][i]);
    lanes[2][i] = multiply_add(s, s, lanes[2][i]);
  }
  return {sum_tree(lanes[0]), sum_tree(lanes[1]), sum_tree(lanes[2])};
}

/// Where a pixel's channels begin, beside the image's first.
int64_t row_of(const int64_t* strides, int64_t width, int64_t pixel) {
  return pixel / width * strides[2] + pixel % width * strides[3];
}

template <typename T, typename A>
void sum_rows(const Maps& maps, const Tile& tile, Sums<A>& sums) {
  const T* teacher = at<T>(maps.teacher, maps.teacher_strides, tile.sample);
  const T* student = at<T>(maps.student, maps.student_strides, tile.sample);
  for (int i = 0; i < tile.count; ++i) {
    const Dots<A> dots =
        sum_row<T, A>(teacher + row_of(maps.teacher_strides, maps.width, tile.first + i),
                      student + row_of(maps.student_strides, maps.width, tile.first + i), maps.channels);
    sums.both[i] = dots.both;
    sums.teacher[i] = dots.teacher;
    sums.student[i] = dots.student;
  }
}

// -----------------------------------------------------------------------------------------------------------
// distances

template <typename T, typename A>
void sum_tile(const Maps& maps, const Tile& tile, Sums<A>& sums) {
  if (maps.rows) {
    sum_rows<T>(maps, tile, sums);
  } else {
    sum_planes<T>(maps, tile, sums);
  }
}

template <typename T>
void distances(const Maps& maps, const Tile& tile, double eps, void* out) {
  using A = typename VectorOf<T>::Type::Scalar;
  Sums<A> sums;
  sum_tile<T>(maps, tile, sums);
  A* to = static_cast<A*>(out) + tile.sample * maps.pixels() + tile.first;
#pragma omp simd
  for (int i = 0; i < tile.count; ++i) {
    to[i] = distance<A>({sums.both[i], sums.teacher[i], sums.student[i]}, static_cast<A>(eps));
  }
}

// -----------------------------------------------------------------------------------------------------------
// gradients

template <typename A>
struct TileSlopes {
  A own[kTile], other[kTile];
};

/// For one of the two features, `own`, whose squares are `squared`.
template <typename A>
void find_slopes(const Sums<A>& sums, const A* squared, const A* other_squared, const A* grads, int count,
                 A eps, TileSlopes<A>& found) {
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    const Slopes<A> at = slopes(sums.both[i], squared[i], other_squared[i], grads[i], eps);
    found.own[i] = at.own;
    found.other[i] = at.other;
  }
}

/// Both features and the result are dense and laid out alike, from the same element on.
template <typename T, typename A>
void write_gradient(const Maps& maps, const Tile& tile, const T* own, const T* other,
                    const TileSlopes<A>& slope, T* to) {
  for (int64_t outer = 0; outer < (maps.rows ? tile.count : maps.channels); ++outer) {
    const int64_t first =
        maps.rows ? (tile.first + outer) * maps.channels : outer * maps.pixels() + tile.first;
    const int64_t length = maps.rows ? maps.channels : tile.count;
    const T *from = own + first, *beside = other + first;
    T* into = to + first;
    if (maps.rows) {
      const A a = slope.own[outer], b = slope.other[outer];
#pragma omp simd
      for (int64_t i = 0; i < length; ++i)
        into[i] = narrow<T>(multiply_add(a, widen(from[i]), b * widen(beside[i])));
    } else {
#pragma omp simd
      for (int64_t i = 0; i < length; ++i) {
        into[i] = narrow<T>(multiply_add(slope.own[i], widen(from[i]), slope.other[i] * widen(beside[i])));
      }
    }
  }
}

template <typename T>
void gradients(const Maps& maps, const Tile& tile, double eps, const Gradients& wanted) {
  using A = typename VectorOf<T>::Type::Scalar;
  Sums<A> sums;
  sum_tile<T>(maps, tile, sums);
  const A* grads = static_cast<const A*>(wanted.grads) + tile.sample * maps.pixels() + tile.first;
  const int64_t image = tile.sample * maps.channels * maps.pixels();
  const T* teacher = static_cast<const T*>(maps.teacher) + image;
  const T* student = static_cast<const T*>(maps.student) + image;
  TileSlopes<A> slope;
  find_slopes(sums, sums.student, sums.teacher, grads, tile.count, static_cast<A>(eps), slope);
  write_gradient(maps, tile, student, teacher, slope, static_cast<T*>(wanted.to_student) + image);
  if (wanted.to_teacher == nullptr) return;
  find_slopes(sums, sums.teacher, sums.student, grads, tile.count, static_cast<A>(eps), slope);
  write_gradient(maps, tile, teacher, student, slope, static_cast<T*>(wanted.to_teacher) + image);
}

template <typename T>
constexpr TypedKernels kernels_of() {
  return {distances<T>, gradients<T>};
}

}  // namespace

extern const CpuKernels kernels = {kernels_of<float>(), kernels_of<double>(), kernels_of<Half>(),
                                   kernels_of<BFloat16>()};

}  // namespace scrd::cosine::SCRD_ISA
