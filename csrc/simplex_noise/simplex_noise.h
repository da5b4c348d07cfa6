// SPDX-License-Identifier: Apache-2.0
// Fractal OpenSimplex noise (Kurt Spencer's algorithm of 2014) in three dimensions: the arithmetic of one
// point.
//
// Space is cut into lattice cells, stretched cubes whose corners are numbered by three bits (1 = x, 2 = y, 4
// = z). A cell has three regions: the tetrahedra at its corners 000 and 111 and the octahedron between them.
// A point sums the contributions of its region's corners and of two extra vertices outside the region. All of
// them lie at small integer offsets from the cell's origin, and the displacement from the vertex at `offset`
// is
//     d = d0 - offset - sum(offset) * kSquish.
//
// Decisions are made in double and in the published order of operations, without fused multiply-add: points
// that fall exactly between two regions are common on a pixel grid.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace scrd::simplex {

constexpr int kEntries = 256;  // length of a permutation
constexpr double kStretch = -1.0 / 6;
constexpr double kSquish = 1.0 / 3;
constexpr double kNorm = 103;  // brings one octave into about [-1, 1]

SCRD_HOST_DEVICE inline uint64_t next_state(uint64_t state) {
  return state * 6364136223846793005u + 1442695040888963407u;
}

/// The permutation of 0..255 that stands for a seed.
SCRD_HOST_DEVICE inline void build_permutation(int64_t seed, uint8_t* permutation) {
  uint8_t source[kEntries];
  for (int i = 0; i < kEntries; ++i) source[i] = static_cast<uint8_t>(i);
  uint64_t state = next_state(next_state(next_state(static_cast<uint64_t>(seed))));
  for (int n = kEntries; n > 0; --n) {
    state = next_state(state);
    int draw = static_cast<int>(static_cast<int64_t>(state) % n);  // in (-n, n); state + 31 could overflow
    draw = (draw + n + 31) % n;
    permutation[n - 1] = source[draw];
    source[draw] = source[n - 1];
  }
}

/// A vertex beside the cell's origin: 1 on the axes in `ones`, and `sign` more on the axes in `shift`.
struct Vertex {
  int ones, shift, sign;
  SCRD_HOST_DEVICE int along(int axis) const {
    return ((ones & axis) != 0 ? 1 : 0) + ((shift & axis) != 0 ? sign : 0);
  }
  SCRD_HOST_DEVICE Vertex mirrored() const { return {7 - ones, shift, -sign}; }  // offset -> 1 - offset
};

/// The vertices that contribute: bit m of `corners` stands for the cell's corner m.
struct Region {
  int corners;
  Vertex extra[2];
};

/// The tetrahedron at corner 000. Larger scores are closer: x, y, z score the neighbours along the axes.
SCRD_HOST_DEVICE inline Region tetrahedron(double x, double y, double z, double origin) {
  constexpr int kCorners = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 4;
  int a = 1, b = 2;  // the two closest of the three neighbours
  if (x >= y && z > y) {
    y = z;
    b = 4;
  } else if (x < y && z > x) {
    x = z;
    a = 4;
  }
  if (origin > x || origin > y) {
    const int closest = y > x ? b : a;
    const int other = closest == 1 ? 2 : 1;
    return {kCorners, {{closest, other, -1}, {closest, 7 - closest - other, -1}}};
  }
  return {kCorners, {{a | b, 0, 0}, {a | b, 7 - (a | b), -1}}};
}

/// One of the octahedron's three pairs of opposite corners: `axis` (near 000) against the other two axes
/// (far).
struct Pair {
  int axis;
  bool far;
  double score;
  SCRD_HOST_DEVICE Pair(int axis_, double sum) : axis(axis_), far(sum > 1), score(fabs(sum - 1)) {}
};

SCRD_HOST_DEVICE inline Region octahedron(double x, double y, double z) {
  constexpr int kCorners = 0x7e;  // all but 000 and 111
  Pair a(4, x + y), b(2, x + z);
  const Pair c(1, y + z);
  if (a.score <= b.score) {
    if (a.score < c.score) a = c;
  } else if (b.score < c.score) {
    b = c;
  }
  if (a.far != b.far) {
    const int far = a.far ? a.axis : b.axis, near = a.far ? b.axis : a.axis;
    return {kCorners, {{7 - far, far, -1}, {near, near, 1}}};
  }
  const int third = 7 - a.axis - b.axis;
  const Vertex corner{7, 0, 0}, beyond{third, third, 1};
  if (a.far) return {kCorners, {corner, beyond}};
  return {kCorners, {corner.mirrored(), beyond.mirrored()}};
}

/// The region of the point (x, y, z) of the unit cube that a cell becomes when it is stretched.
SCRD_HOST_DEVICE inline Region find_region(double x, double y, double z) {
  const double sum = x + y + z;
  if (sum <= 1) return tetrahedron(x, y, z, 1 - sum);
  if (sum < 2) return octahedron(x, y, z);
  const Region region =
      tetrahedron(-x, -y, -z, sum - 3);  // corner 111, seen as corner 000 of the mirrored cell
  return {1 << 3 | 1 << 5 | 1 << 6 | 1 << 7, {region.extra[0].mirrored(), region.extra[1].mirrored()}};
}

/// Where a point lies: its cell's origin, and its displacement from there.
struct Place {
  int64_t cell_x, cell_y, cell_z;
  double x, y, z;
};

/// Product of the displacement and the vertex's gradient, one of the 24 vectors (+-11, +-4, +-4) and its
/// turns.
SCRD_HOST_DEVICE inline double along_gradient(int gradient, double x, double y, double z) {
  const int longest = gradient % 3, signs = gradient / 3;
  const double gx = (longest == 0 ? 11 : 4) * ((signs & 1) != 0 ? 1 : -1);
  const double gy = (longest == 1 ? 11 : 4) * ((signs & 2) != 0 ? -1 : 1);
  const double gz = (longest == 2 ? 11 : 4) * ((signs & 4) != 0 ? -1 : 1);
  return gx * x + gy * y + gz * z;
}

SCRD_HOST_DEVICE inline double contribution(const uint8_t* permutation, const Place& place,
                                            const Vertex& vertex) {
  const int i = vertex.along(1), j = vertex.along(2), k = vertex.along(4);
  const double squish = (i + j + k) * kSquish;
  const double x = place.x - i - squish, y = place.y - j - squish, z = place.z - k - squish;
  double attenuation = 2 - x * x - y * y - z * z;
  if (attenuation <= 0) return 0;
  attenuation *= attenuation;
  int entry = permutation[(place.cell_x + i) & 255];
  entry = permutation[(entry + place.cell_y + j) & 255];
  entry = permutation[(entry + place.cell_z + k) & 255];
  return attenuation * attenuation * along_gradient(entry % 24, x, y, z);
}

/// One octave.
SCRD_HOST_DEVICE inline double noise(const uint8_t* permutation, double x, double y, double z) {
  const double stretch = (x + y + z) * kStretch;
  const double xs = x + stretch, ys = y + stretch, zs = z + stretch;
  const double xb = floor(xs), yb = floor(ys), zb = floor(zs);
  const double squish = (xb + yb + zb) * kSquish;
  const Place place{static_cast<int64_t>(xb), static_cast<int64_t>(yb), static_cast<int64_t>(zb),
                    x - (xb + squish),        y - (yb + squish),        z - (zb + squish)};
  const Region region = find_region(xs - xb, ys - yb, zs - zb);
  double value = 0;
  for (int corner = 0; corner < 8; ++corner) {
    if ((region.corners >> corner & 1) != 0) value += contribution(permutation, place, {corner, 0, 0});
  }
  for (const Vertex& vertex : region.extra) value += contribution(permutation, place, vertex);
  return value / kNorm;
}

struct Fractal {
  int64_t octaves;
  double persistence, frequency;
};

/// The sum of all octaves at pixel w of row h of slice d.
SCRD_HOST_DEVICE inline float fractal_noise(const uint8_t* permutation, const Fractal& fractal, int64_t d,
                                            int64_t h, int64_t w) {
  double value = 0, amplitude = 1, frequency = fractal.frequency;
  for (int64_t octave = 0; octave < fractal.octaves; ++octave) {
    value += amplitude * noise(permutation, w * frequency, h * frequency, d * frequency);
    amplitude *= fractal.persistence;
    frequency *= 2;
  }
  return static_cast<float>(value);
}

}  // namespace scrd::simplex
