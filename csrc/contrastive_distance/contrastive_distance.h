// SPDX-License-Identifier: Apache-2.0
// The cosine distances of a student's whole map from a clean and from a noisy teacher's, and their gradients:
// the arithmetic of one sample and scale, once its five dot products are known.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "cosine_distances/cosine_distances.h"

namespace scrd::contrastive {

constexpr int kDots = 5;           // numbers of a sample and scale: the members of Dots
constexpr int64_t kChunk = 16384;  // values that are summed in one go, whatever else there is

/// One scale of a batch. A sample's values lie side by side, in the same order in all maps; strides of the
/// samples are in values.
struct Maps {
  const void *clean, *noisy, *student;  // noisy may be null
  int64_t samples, values;
  int64_t clean_stride, noisy_stride, student_stride;

  SCRD_HOST_DEVICE int64_t chunks() const { return (values + kChunk - 1) / kChunk; }
};

inline namespace SCRD_ISA {

/// Products of the student with each teacher, and of each with itself.
template <typename A>
struct Dots {
  A clean_student, noisy_student, clean, noisy, student;
};

/// Gradients of both distances with respect to the maps, as multiples of the maps.
template <typename A>
struct Slopes {
  A student_clean, student_noisy, student_own;  // to the student: times clean, noisy and student
  A clean_own, clean_student;                   // to the clean teacher
  A noisy_own, noisy_student;
};

/// `to_clean` and `to_noisy` are what comes from behind, for each distance.
template <typename A>
SCRD_HOST_DEVICE inline Slopes<A> slopes(const Dots<A>& dots, A to_clean, A to_noisy, A eps) {
  const auto pull = cosine::slopes(dots.clean_student, dots.student, dots.clean, to_clean, eps);
  const auto push = cosine::slopes(dots.noisy_student, dots.student, dots.noisy, to_noisy, eps);
  const auto clean = cosine::slopes(dots.clean_student, dots.clean, dots.student, to_clean, eps);
  const auto noisy = cosine::slopes(dots.noisy_student, dots.noisy, dots.student, to_noisy, eps);
  return {pull.other, push.other, pull.own + push.own, clean.own, clean.other, noisy.own, noisy.other};
}

}  // namespace SCRD_ISA
}  // namespace scrd::contrastive
