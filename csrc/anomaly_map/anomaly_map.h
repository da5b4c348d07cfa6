// SPDX-License-Identifier: Apache-2.0
// From small maps to the anomaly map: bilinear upsampling and a Gaussian blur are one banded matrix per axis,
// row by row as computed here, and the scores of an image follow from an order of its pixels' bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace scrd::maps {

/// One axis of one scale: `source` pixels become `target`, then a blur of `sigma` target pixels.
struct Axis {
  int64_t source, target;
  double sigma;
  bool mirror;  // scipy's border: d c b | a b c d | c b a; otherwise reflect: d c b a | a b c d | d c b a

  SCRD_HOST_DEVICE int64_t radius() const { return static_cast<int64_t>(4 * sigma + 0.5); }
};

inline namespace SCRD_ISA {

/// Not yet divided by the sum over -radius ... radius.
SCRD_HOST_DEVICE inline double gaussian(int64_t offset, double sigma) {
  if (sigma == 0) return 1;
  const double scaled = static_cast<double>(offset) / sigma;
  return exp(-0.5 * scaled * scaled);
}

/// The pixel inside the image that stands for one beyond its border.
SCRD_HOST_DEVICE inline int64_t folded(int64_t place, int64_t size, bool mirror) {
  const int64_t edge = mirror ? 1 : 0, period = 2 * (size - edge);
  if (period == 0) return 0;
  int64_t within = place % period;
  if (within < 0) within += period;
  return within < size ? within : period + edge - 1 - within;
}

/// A target pixel before the blur: (1 - share) of source pixel `first`, `share` of the next one.
struct Between {
  int64_t first;
  double share;
};

SCRD_HOST_DEVICE inline Between between(const Axis& axis, int64_t place) {
  if (axis.target == 1) return {0, 0.0};
  const double step = static_cast<double>(axis.source - 1) / static_cast<double>(axis.target - 1);
  const double position = step * static_cast<double>(place);
  const int64_t first = static_cast<int64_t>(position);
  if (first >= axis.source - 1) return {axis.source - 1, 0.0};  // the last pixel, or rounding beyond it
  return {first, position - static_cast<double>(first)};
}

/// Row `place` of the axis's matrix has entries in [first, end) only. Folding at a border stays between the
/// two: what lies beyond is as far inside as the pixel itself, or less.
struct Band {
  int64_t first, end;
};

SCRD_HOST_DEVICE inline Band band(const Axis& axis, int64_t place) {
  if (axis.target == 1) return {0, 1};
  const int64_t radius = axis.radius(), low = place - radius, high = place + radius;
  const int64_t last = between(axis, high < axis.target ? high : axis.target - 1).first + 2;
  return {between(axis, low > 0 ? low : 0).first, last < axis.source ? last : axis.source};
}

/// No row's band is longer.
SCRD_HOST_DEVICE inline int64_t band_limit(const Axis& axis) {
  if (axis.target == 1) return 1;
  const int64_t window = 2 * axis.radius() < axis.target - 1 ? 2 * axis.radius() : axis.target - 1;
  const double step = static_cast<double>(axis.source - 1) / static_cast<double>(axis.target - 1);
  const int64_t limit = static_cast<int64_t>(step * static_cast<double>(window)) + 3;
  return limit < axis.source ? limit : axis.source;
}

// -----------------------------------------------------------------------------------------------------------
// the largest pixels

template <typename A>
struct KeyOf;
template <>
struct KeyOf<float> {
  using Type = uint32_t;
};
template <>
struct KeyOf<double> {
  using Type = uint64_t;
};

/// An unsigned number whose order is the value's; not for NaN.
template <typename A>
SCRD_HOST_DEVICE inline typename KeyOf<A>::Type key_of(A value) {
  using Key = typename KeyOf<A>::Type;
  constexpr Key kSign = Key{1} << (8 * sizeof(Key) - 1);
  value += 0;  // -0 becomes 0, to which it is equal
  Key bits;
  memcpy(&bits, &value, sizeof bits);
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

template <typename A>
SCRD_HOST_DEVICE inline A value_of(typename KeyOf<A>::Type key) {
  using Key = typename KeyOf<A>::Type;
  constexpr Key kSign = Key{1} << (8 * sizeof(Key) - 1);
  const Key bits = (key & kSign) != 0 ? key & ~kSign : ~key;
  A value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/// How many pixels are the largest `share` of them.
SCRD_HOST_DEVICE inline int64_t count_of(double share, int64_t pixels) {
  const int64_t count = static_cast<int64_t>(ceil(share * static_cast<double>(pixels)));
  return count < pixels ? count : pixels;
}

}  // namespace SCRD_ISA
}  // namespace scrd::maps
