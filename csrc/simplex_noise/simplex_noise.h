// SPDX-License-Identifier: Apache-2.0
// Fractal simplex noise in three dimensions: the arithmetic of one point, for OpenSimplex noise (Kurt
// Spencer's algorithm of 2014). The variant without a table stands in hashed_noise.h.
//
// Space is cut into lattice cells, stretched cubes whose corners are numbered by three bits (1 = x, 2 = y, 4
// = z). A cell has three regions: the tetrahedra at its corners 000 and 111 and the octahedron between them.
// A point sums the contributions of its region's corners and of two extra vertices outside the region. All of
// them lie at small integer offsets from the cell's origin, and the displacement from the vertex at `offset`
// is
//     d = fraction + sum(fraction) / 3 - offset - sum(offset) / 3.
//
// Which vertices contribute is decided in double and in the published order of operations, and must be
// compiled without fused multiply-add: points that fall exactly between two regions are common on a pixel
// grid, and there the rounding of the published algorithm decides. What the vertices add is float.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace scrd::simplex {

enum class Variant { kOpenSimplex, kHashed };

struct Fractal {
  int64_t octaves;
  double persistence, frequency;
};

constexpr int kEntries = 256;  // length of a permutation
constexpr int kCodes = 64;     // values of `region_code`
constexpr int kVertices = 8;   // no more contribute to a point
constexpr float kNorm = 103;   // brings one octave into about [-1, 1]

inline namespace SCRD_ISA {

// -------------------------------------------------------------------------------------------------
// permutation

/// The random numbers of a shuffle are those of this generator from its fourth state on.
SCRD_HOST_DEVICE inline uint64_t next_state(uint64_t state) {
  return state * 6364136223846793005u + 1442695040888963407u;
}

constexpr int kWarmUp = 3;

/// Which of the first n entries goes to place n - 1.
SCRD_HOST_DEVICE inline int draw_entry(uint64_t state, int n) {
  const int remainder =
      static_cast<int>(static_cast<int64_t>(state) % n);  // in (-n, n); state + 31 could overflow
  return (remainder + n + 31) % n;
}

/// The permutation of 0..255 that stands for a seed.
inline void build_permutation(int64_t seed, uint8_t* permutation) {
  uint8_t source[kEntries];
  for (int i = 0; i < kEntries; ++i) source[i] = static_cast<uint8_t>(i);
  uint64_t state = static_cast<uint64_t>(seed);
  for (int i = 0; i < kWarmUp; ++i) state = next_state(state);
  for (int n = kEntries; n > 0; --n) {
    state = next_state(state);
    const int draw = draw_entry(state, n);
    permutation[n - 1] = source[draw];
    source[draw] = source[n - 1];
  }
}

// ---------------------------------------------------------------------------------------------------
// gradients

/// The gradient at a vertex whose hash is `entry`, one of (+-11, +-4, +-4) and its turns: the axis of the 11
/// in bits 0 and 1, the signs of x, y, z in bits 2 to 4.
SCRD_HOST_DEVICE constexpr uint8_t gradient_code(int entry) {
  const int gradient = entry % 24;
  return static_cast<uint8_t>(gradient % 3 | (gradient / 3 ^ 1) << 2);
}

/// Product of a displacement and a gradient.
SCRD_HOST_DEVICE constexpr float along_gradient(int code, float x, float y, float z) {
  x = (code & 4) != 0 ? -x : x;
  y = (code & 8) != 0 ? -y : y;
  z = (code & 16) != 0 ? -z : z;
  const float longest = (code & 3) == 0 ? x : (code & 3) == 1 ? y : z;
  return 4 * (x + y + z) + 7 * longest;
}

// -----------------------------------------------------------------------------------------------------
// regions

/// A vertex beside the cell's origin: 1 on the axes in `ones`, and `sign` more on the axes in `shift`.
struct Vertex {
  int ones, shift, sign;
  SCRD_HOST_DEVICE constexpr int along(int axis) const {
    return ((ones & axis) != 0 ? 1 : 0) + ((shift & axis) != 0 ? sign : 0);
  }
  SCRD_HOST_DEVICE constexpr Vertex mirrored() const {
    return {7 - ones, shift, -sign};
  }  // offset -> 1 - offset
};

/// Decisions about a point (x, y, z) of the unit cube that a cell becomes when it is stretched, as six bits.
/// Every bit is one comparison, and there are no branches, so that compilers make vector code of it.
/// Octahedron, bit 5 set: which of the sums x + y, x + z, y + z exceed 1 (bits 0 to 2); whether the first is
/// closer to 1 than the second, or as close (bit 3); whether the third replaces that one (bit 4). Tetrahedra:
/// whether the corner on x is the closer one of x and y, or as close (bit 0); whether that on z replaces the
/// other (bit 1); of the two corners that are left, in the order x, y with z in the other's place, whether
/// the second is the closer (bit 2); whether the tetrahedron's own corner is closer than one of them (bit 3);
/// which of the two tetrahedra it is (bit 4).
SCRD_HOST_DEVICE inline int64_t region_code(double x, double y, double z) {
  const double sum = x + y + z;
  const double mirror = sum >= 2 ? -1 : 1;  // corner 111 is seen as corner 000 of the mirrored cell
  const double tx = x * mirror, ty = y * mirror, tz = z * mirror;
  const double origin = sum >= 2 ? sum - 3 : 1 - sum;
  const double closer = tx >= ty ? tx : ty, other = tx >= ty ? ty : tx;
  const double left = tz > other ? tz : other;
  const double a = tx >= ty ? closer : left, b = tx >= ty ? left : closer;
  const double farther = closer < left ? closer : left;
  const int64_t tetrahedron = (tx >= ty ? 1 : 0) + (tz > other ? 2 : 0) + (b > a ? 4 : 0) +
                              (origin > farther ? 8 : 0) + (sum >= 2 ? 16 : 0);

  const double xy = x + y, xz = x + z, yz = y + z;
  const double xy_far = fabs(xy - 1), xz_far = fabs(xz - 1), yz_far = fabs(yz - 1);
  const double near = xy_far <= xz_far ? xy_far : xz_far;
  const int64_t octahedron = (xy > 1 ? 1 : 0) + (xz > 1 ? 2 : 0) + (yz > 1 ? 4 : 0) +
                             (xy_far <= xz_far ? 8 : 0) + (near < yz_far ? 16 : 0) + 32;
  const int64_t high_or_between = sum >= 2 ? tetrahedron : octahedron;
  return sum <= 1 ? tetrahedron : high_or_between;
}

/// The two extra vertices of the tetrahedron at corner 000.
SCRD_HOST_DEVICE constexpr void tetrahedron_extras(int code, Vertex* extras) {
  const int a = (code & 3) == 2 ? 4 : 1,
            b = (code & 3) == 3 ? 4 : 2;  // the two closest of the three neighbours
  if ((code & 8) != 0) {
    const int closest = (code & 4) != 0 ? b : a, other = closest == 1 ? 2 : 1;
    extras[0] = {closest, other, -1};
    extras[1] = {closest, 7 - closest - other, -1};
  } else {
    extras[0] = {a | b, 0, 0};
    extras[1] = {a | b, 7 - (a | b), -1};
  }
}

/// The two extra vertices of the octahedron, from the two of its three pairs of opposite corners that are
/// closest: the corner on one axis (near 000) against that on the two others (far).
SCRD_HOST_DEVICE constexpr void octahedron_extras(int code, Vertex* extras) {
  int a = 4, b = 2;
  bool a_far = (code & 1) != 0, b_far = (code & 2) != 0;
  if ((code & 24) == 24) {
    a = 1;
    a_far = (code & 4) != 0;
  } else if ((code & 16) != 0) {
    b = 1;
    b_far = (code & 4) != 0;
  }
  if (a_far != b_far) {
    const int far = a_far ? a : b, near = a_far ? b : a;
    extras[0] = {7 - far, far, -1};
    extras[1] = {near, near, 1};
  } else {
    const int third = 7 - a - b;
    const Vertex corner{7, 0, 0}, beyond{third, third, 1};
    extras[0] = a_far ? corner : corner.mirrored();
    extras[1] = a_far ? beyond : beyond.mirrored();
  }
}

/// The vertices that contribute in a region: six bits each, offset + 1 along x, y and z. A vertex that does
/// not exist has offset 2 on every axis, where nothing reaches.
SCRD_HOST_DEVICE constexpr uint64_t region_vertices(int code) {
  Vertex vertices[kVertices] = {{0, 0, 0}, {1, 0, 0}, {2, 0, 0}, {4, 0, 0},
                                {7, 7, 1}, {7, 7, 1}, {7, 7, 1}, {7, 7, 1}};
  if ((code & 32) != 0) {
    vertices[0] = {3, 0, 0};
    vertices[4] = {5, 0, 0};
    vertices[5] = {6, 0, 0};
    octahedron_extras(code, vertices + 6);
  } else {
    tetrahedron_extras(code, vertices + 4);
    for (int v = 0; (code & 16) != 0 && v < 6; ++v) vertices[v] = vertices[v].mirrored();
  }
  uint64_t word = 0;
  for (int v = kVertices - 1; v >= 0; --v) {
    const int bits =
        (vertices[v].along(1) + 1) | (vertices[v].along(2) + 1) << 2 | (vertices[v].along(4) + 1) << 4;
    word = word << 6 | static_cast<uint64_t>(bits);
  }
  return word;
}

/// Offset of vertex `v` of a word from region_vertices along axis 0, 1 or 2.
SCRD_HOST_DEVICE constexpr int vertex_offset(uint64_t word, int v, int axis) {
  return static_cast<int>(word >> (6 * v + 2 * axis) & 3) - 1;
}

// -------------------------------------------------------------------------------------------------
// contributions

/// The origin of a point's cell and the point's place in the stretched cell, three fractions in [0, 1].
struct Place {
  double cell_x, cell_y, cell_z, x, y, z;
};

SCRD_HOST_DEVICE inline Place locate(double x, double y, double z) {
  const double stretch = (x + y + z) * (-1.0 / 6);
  const double xs = x + stretch, ys = y + stretch, zs = z + stretch;
  const double xb = floor(xs), yb = floor(ys), zb = floor(zs);
  return {xb, yb, zb, xs - xb, ys - yb, zs - zb};
}

/// The low bits of an integer that a double holds (below 2^51), without a conversion that CPUs have no
/// vectors for.
SCRD_HOST_DEVICE inline uint64_t low_bits(double integer) {
  integer += 6755399441055744.0;  // 2^52 + 2^51: the last bit of the significand is worth 1
  uint64_t bits;
  memcpy(&bits, &integer, sizeof bits);
  return bits;
}

/// Displacement from a vertex along one axis; `from_origin` is that from the cell's origin.
SCRD_HOST_DEVICE inline float displacement(float from_origin, int thirds) {
  return multiply_add(static_cast<float>(thirds), -1.0f / 3, from_origin);
}

/// What a vertex weighs at displacement (x, y, z).
SCRD_HOST_DEVICE inline float falloff(float x, float y, float z) {
  float weight = multiply_add(-x, x, multiply_add(-y, y, multiply_add(-z, z, 2.0f)));
  weight = weight > 0 ? weight : 0;
  weight *= weight;
  return weight * weight;
}

}  // namespace SCRD_ISA
}  // namespace scrd::simplex
