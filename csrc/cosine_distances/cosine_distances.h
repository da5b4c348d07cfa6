// SPDX-License-Identifier: Apache-2.0
// The cosine distance of a teacher's and a student's feature vector, and its gradient: the arithmetic of one
// pixel, once its three dot products are known.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace scrd::cosine {

/// One scale of a batch of features; strides in elements.
struct Maps {
  const void *teacher, *student;
  int64_t samples, channels, height, width;
  int64_t teacher_strides[4], student_strides[4];
  /// How both lie in memory: with pixel beside pixel (planes: the last two axes are dense), or with channel
  /// beside channel (rows: channels-last, or a part of that).
  bool rows;

  SCRD_HOST_DEVICE int64_t pixels() const { return height * width; }
};

inline namespace SCRD_ISA {

/// Products of teacher and student, and of each with itself.
template <typename A>
struct Dots {
  A both, teacher, student;
};

template <typename A>
SCRD_HOST_DEVICE inline A norm(A squared, A eps) {
  const A length = sqrt(squared);
  return length < eps ? eps : length;  // NaN stays NaN: with eps for it, gradients would look right
}

/// 1 - cos. Divided by one norm after the other, whose product could underflow.
template <typename A>
SCRD_HOST_DEVICE inline A distance(A both, A teacher, A student, A eps) {
  return 1 - both / norm(teacher, eps) / norm(student, eps);
}

/// The gradient of a distance with respect to one vector: `own` times that vector plus `other` times the
/// other one.
template <typename A>
struct Slopes {
  A own, other;
};

/// `squared` and `other_squared` are the dots of the vector and of the other one, `grad` comes from behind.
template <typename A>
SCRD_HOST_DEVICE inline Slopes<A> slopes(A both, A squared, A other_squared, A grad, A eps) {
  const A length = norm(squared, eps), other = norm(other_squared, eps);
  const A cosine = both / length / other;
  // Below eps the norm is a constant, whose derivative vanishes.
  const A own = length > eps ? cosine / length / length : 0;
  return {grad * own, -grad / length / other};
}

}  // namespace SCRD_ISA
}  // namespace scrd::cosine
