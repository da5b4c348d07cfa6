// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, with SCRD_ISA as its name.
//
// In planes, a tile's pixels are lanes: their sums lie in three arrays, to which channels are added. In rows,
// a pixel's channels are lanes: 16 or 32 sums side by side, joined in a tree. Either order follows from the
// channels alone.
//
// What decides the speed is in which order memory is read: processors fetch ahead of few and long streams.
#include <initializer_list>
#include <type_traits>

#include "common/vectors.h"
#include "cosine_distances/cosine_distances_cpu.h"

namespace scrd::cosine::SCRD_ISA {
namespace {

constexpr int kAhead = 1024;  // bytes that are asked for before they are needed, in one stream
constexpr int kLine = 64;     // bytes that memory gives at once
constexpr int kStep =
    4;  // channels at a time, where planes are so large that their sums leave the first cache
constexpr int kApart = 336;  // a pixel's sums at one place of their pages would be in each other's way
// Sums side by side, in rows: with the features they have to fit into the registers.
constexpr int kLanes = Floats::kLanes > 8 ? 32 : 16;

template <typename A>
struct alignas(64) Sums {
  A both[kLargeTile + kApart], teacher[kLargeTile + kApart], student[kLargeTile + kApart];
};

template <typename T>
const T* at(const void* data, const int64_t* strides, int64_t sample) {
  return static_cast<const T*>(data) + sample * strides[0];
}

// -----------------------------------------------------------------------------------------------------------
// planes

/// The pixels of a step. Of 16-bit values a large register would take a whole line of memory at once, which
/// measured a fifth slower than half a line.
template <typename T>
using PlaneLanes = Twins<std::conditional_t<sizeof(T) == 2, ShortFloats, typename SumsOf<T>::Vector>>;

template <int kChannels, typename Lanes, typename T, typename A>
void add_lanes(const T* teacher, int64_t teacher_stride, const T* student, int64_t student_stride, A* both,
               A* squared_teacher, A* squared_student) {
  Lanes ts = Lanes::load_sums(both), tt = Lanes::load_sums(squared_teacher),
        ss = Lanes::load_sums(squared_student);
#pragma GCC unroll 4
  for (int c = 0; c < kChannels; ++c) {
    const Lanes t = Lanes::load(teacher + c * teacher_stride), s = Lanes::load(student + c * student_stride);
    ts = multiply_add(t, s, ts);
    tt = multiply_add(t, t, tt);
    ss = multiply_add(s, s, ss);
  }
  ts.store_sums(both);
  tt.store_sums(squared_teacher);
  ss.store_sums(squared_student);
}

/// Asks for a run of each of the next channels, one run after the other: read side by side, they would be as
/// many streams as there are channels.
template <int kChannels, typename T>
class Ahead {
 public:
  Ahead(const T* channels, int64_t stride, int count)
      : next_(channels + kChannels * stride), stride_(stride), count_(count) {}

  /// To be called for every `kBytes` bytes that are read of each channel.
  template <int kBytes>
  SCRD_INLINE void fetch() {
#pragma GCC unroll 8
    for (int line = 0; line < kChannels * kBytes / kLine; ++line) {
      __builtin_prefetch(next_ + done_ + line * kLine / sizeof(T));
    }
    done_ += kChannels * kBytes / sizeof(T);
    if (done_ >= count_) {
      done_ = 0;
      next_ += stride_;
    }
  }

 private:
  const T* next_;
  int64_t stride_;
  int count_, done_ = 0;
};

template <int kChannels, typename T, typename A>
void add_channels(const T* teacher, int64_t teacher_stride, const T* student, int64_t student_stride,
                  int count, Sums<A>& sums) {
  using Lanes = PlaneLanes<T>;
  Ahead<kChannels, T> of_teacher(teacher, teacher_stride, count), of_student(student, student_stride, count);
  int i = 0;
  for (; i + Lanes::kLanes <= count; i += Lanes::kLanes) {
    if constexpr (kChannels > 1 &&
                  Lanes::kLanes <= 16) {  // larger steps have reads enough under way by themselves
      of_teacher.template fetch<Lanes::kLanes * sizeof(T)>();
      of_student.template fetch<Lanes::kLanes * sizeof(T)>();
    }
    add_lanes<kChannels, Lanes>(teacher + i, teacher_stride, student + i, student_stride, sums.both + i,
                                sums.teacher + i, sums.student + i);
  }
  for (; i < count; ++i) {
    add_lanes<kChannels, One<A>>(teacher + i, teacher_stride, student + i, student_stride, sums.both + i,
                                 sums.teacher + i, sums.student + i);
  }
}

/// Puts the pixels of whole registers back in their places.
template <typename T, typename A>
void untangle(int count, A* values) {
  using Lanes = PlaneLanes<T>;
  if constexpr (SumsOf<T>::kInterleaved) {
    for (int i = 0; i + Lanes::kLanes <= count; i += Lanes::kLanes) {
      A apart[Lanes::kLanes];
      for (int l = 0; l < Lanes::kLanes; ++l) apart[l] = values[i + l / 2 + l % 2 * (Lanes::kLanes / 2)];
      for (int l = 0; l < Lanes::kLanes; ++l) values[i + l] = apart[l];
    }
  }
}

template <typename T, typename A>
void sum_planes(const Maps& maps, const Tile& tile, Sums<A>& sums) {
  for (int i = 0; i < tile.count; ++i) sums.both[i] = sums.teacher[i] = sums.student[i] = 0;
  const T* teacher = at<T>(maps.teacher, maps.teacher_strides, tile.sample) + tile.first;
  const T* student = at<T>(maps.student, maps.student_strides, tile.sample) + tile.first;
  const int64_t teacher_stride = maps.teacher_strides[1], student_stride = maps.student_strides[1];
  // Sums that stay in the first cache cost nothing: then one channel after the other, two streams in all.
  const bool one_stream = tile.count <= kSmallTile && tile.count == maps.pixels();
  int64_t c = 0;
  for (; !one_stream && c + kStep <= maps.channels; c += kStep) {
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

template <typename T, typename A>
Dots<A> sum_row(const T* teacher, const T* student, int64_t channels) {
  using Lanes = typename Wide<typename SumsOf<T>::Vector, kLanes>::Type;
  Lanes ts = Lanes::all(0), tt = Lanes::all(0), ss = Lanes::all(0);
  const auto add = [&](const T* teacher_part, const T* student_part) {
    const Lanes t = Lanes::load(teacher_part), s = Lanes::load(student_part);
    ts = multiply_add(t, s, ts);
    tt = multiply_add(t, t, tt);
    ss = multiply_add(s, s, ss);
  };
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    __builtin_prefetch(teacher + c + kAhead / sizeof(T));
    __builtin_prefetch(student + c + kAhead / sizeof(T));
    add(teacher + c, student + c);
  }
  if (c < channels) {  // zeros for what is missing
    T last_teacher[kLanes] = {}, last_student[kLanes] = {};
    for (int i = 0; c + i < channels; ++i) {
      last_teacher[i] = teacher[c + i];
      last_student[i] = student[c + i];
    }
    add(last_teacher, last_student);
  }
  return {sum_of(ts), sum_of(tt), sum_of(ss)};
}

/// From pixel to pixel of an image, without the divisions of finding each anew.
template <typename T>
class Pixels {
 public:
  Pixels(const void* data, const int64_t* strides, const Maps& maps, const Tile& tile)
      : at_(at<T>(data, strides, tile.sample) + tile.first / maps.width * strides[2] +
            tile.first % maps.width * strides[3]),
        step_(strides[3]),
        to_next_row_(strides[2] - maps.width * strides[3]),
        width_(maps.width),
        left_(maps.width - tile.first % maps.width) {}

  const T* channels() const { return at_; }
  void advance() {
    at_ += step_;
    if (--left_ > 0) return;
    at_ += to_next_row_;
    left_ = width_;
  }

 private:
  const T* at_;
  int64_t step_, to_next_row_, width_, left_;
};

template <typename T, typename A>
void sum_rows(const Maps& maps, const Tile& tile, Sums<A>& sums) {
  Pixels<T> teacher(maps.teacher, maps.teacher_strides, maps, tile);
  Pixels<T> student(maps.student, maps.student_strides, maps, tile);
  for (int i = 0; i < tile.count; ++i, teacher.advance(), student.advance()) {
    const Dots<A> dots = sum_row<T, A>(teacher.channels(), student.channels(), maps.channels);
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
  using A = typename SumsOf<T>::Vector::Scalar;
  Sums<A> sums;
  sum_tile<T>(maps, tile, sums);
  A* to = static_cast<A*>(out) + tile.sample * maps.pixels() + tile.first;
#pragma omp simd
  for (int i = 0; i < tile.count; ++i) {
    to[i] = distance(sums.both[i], sums.teacher[i], sums.student[i], static_cast<A>(eps));
  }
  if (!maps.rows) untangle<T>(tile.count, to);
}

// -----------------------------------------------------------------------------------------------------------
// gradients

template <typename A>
struct TileSlopes {
  A own[kSmallTile], other[kSmallTile];
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
  using A = typename SumsOf<T>::Vector::Scalar;
  Sums<A> sums;
  sum_tile<T>(maps, tile, sums);
  if (!maps.rows) {
    for (A* of : {sums.both, sums.teacher, sums.student}) untangle<T>(tile.count, of);
  }
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
