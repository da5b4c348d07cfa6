// SPDX-License-Identifier: Apache-2.0
// The sum over octaves of a block of points, for up to kGroup seeds. What depends on the points alone is
// found once an octave.
#pragma once

#include "simplex_noise/simplex_noise_cpu.h"

namespace scrd::simplex {
inline namespace SCRD_ISA {

template <typename From, typename To>
void convert(const From* from, To* to) {
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<To>(from[i]);
}

/// `find(frequency, amplitude, geometry)` and `add(seed, geometry, sum)` for every octave.
template <typename Geometry, typename Find, typename Add>
void sum_octaves(const SeedState* const* seeds, int count, const Fractal& fractal, float (*out)[kLanes],
                 const Find& find, const Add& add) {
  Geometry geometry;
  for (int s = 0; s < count; ++s) {
    for (int i = 0; i < kLanes; ++i) out[s][i] = 0;
  }
  double amplitude = 1, frequency = fractal.frequency;
  for (int64_t octave = 0; octave < fractal.octaves; ++octave) {
    find(frequency, static_cast<float>(amplitude), geometry);
    for (int s = 0; s < count; ++s) add(*seeds[s], geometry, out[s]);
    amplitude *= fractal.persistence;
    frequency *= 2;
  }
}

}  // namespace SCRD_ISA
}  // namespace scrd::simplex
