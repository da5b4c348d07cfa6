// SPDX-License-Identifier: Apache-2.0
// The variant "hashed": simplex noise (Perlin 2001) of four vertices a point whose gradients come from an
// integer hash of the lattice point and the seed, without a table.
//
// Lattice coordinates are 64-bit fixed point, so every backend finds the same cell and the same simplex. A
// vertex weighs (1/2 - d^2)^4, which vanishes at the far side of its simplices: the noise is continuous.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace scrd::simplex {

struct HashKeys {
  uint32_t low, high;
};

inline namespace SCRD_ISA {

constexpr int kHashedVertices = 4;
constexpr double kHashedScale = 0.5;  // brings the spectrum to that of OpenSimplex noise
constexpr float kHashedNorm = 61.5f;  // and this the variance

/// The two halves of splitmix64 (Steele et al. 2014) of a seed.
SCRD_HOST_DEVICE inline HashKeys hash_keys(int64_t seed) {
  uint64_t z = static_cast<uint64_t>(seed) + 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return {static_cast<uint32_t>(z), static_cast<uint32_t>(z >> 32)};
}

/// A third of the lattice's cells in one pixel, in units of 2^-32, before it is rounded. It grows with the
/// frequency: an octave doubles it without an error.
SCRD_HOST_DEVICE inline double lattice_unit(double frequency) {
  return frequency * kHashedScale / 3 * 4294967296.0;
}

SCRD_HOST_DEVICE inline int64_t lattice_step(double unit) { return static_cast<int64_t>(floor(unit + 0.5)); }

/// What makes one number of a lattice point's three coordinates (the primes of Teschner et al. 2003).
constexpr uint32_t kPrimeX = 73856093, kPrimeY = 19349663, kPrimeZ = 83492791;

/// One lattice coordinate.
struct LatticePlace {
  uint32_t key;    // the cell times the axis's prime
  float fraction;  // 24 bits, exact
};

/// `thirds` is x + y + z + 3 times the coordinate, in pixels.
SCRD_HOST_DEVICE inline LatticePlace lattice_place(int64_t thirds, int64_t step, uint32_t prime) {
  const uint64_t place = static_cast<uint64_t>(thirds) * static_cast<uint64_t>(step);
  const int fraction = static_cast<int>(static_cast<uint32_t>(place) >> 8);
  return {static_cast<uint32_t>(place >> 32) * prime, static_cast<float>(fraction) * (1.0f / 16777216)};
}

/// One of 16 gradients: the finaliser of MurmurHash3, keyed by the seed.
SCRD_HOST_DEVICE inline uint32_t hash_gradient(uint32_t key, HashKeys keys) {
  key ^= keys.low;
  key ^= key >> 16;
  key *= 0x85ebca6bu;
  key ^= keys.high;
  key ^= key >> 13;
  key *= 0xc2b2ae35u;
  return key >> 28;
}

/// Product of a displacement and a gradient, an edge of a cube (Perlin 2002).
SCRD_HOST_DEVICE inline float along_edge(uint32_t gradient, float x, float y, float z) {
  const float first = gradient < 8 ? x : y;
  const float other = (gradient & 13) == 12 ? x : z;
  const float second = gradient < 4 ? y : other;
  return ((gradient & 1) != 0 ? -first : first) + ((gradient & 2) != 0 ? -second : second);
}

struct HashedVertex {
  uint32_t key;
  float x, y, z;  // displacement
  float falloff;
};

/// Vertex m of the point whose lattice coordinates are i, j, k. On the way from corner 000 of the cell to
/// corner 111 it lies at 1 on the m axes with the largest fractions: vertex 1 on the axis above both others,
/// vertex 2 on those above one other.
SCRD_HOST_DEVICE inline HashedVertex hashed_vertex(LatticePlace i, LatticePlace j, LatticePlace k, int m) {
  const float u = i.fraction, v = j.fraction, w = k.fraction;
  const float beside_x = m == 1 ? (v > w ? v : w) : (v < w ? v : w);
  const float beside_z = m == 1 ? (u > v ? u : v) : (u < v ? u : v);
  const int ox = m == 3 || (m != 0 && u >= beside_x) ? 1 : 0;
  const int oz = m == 3 || (m != 0 && w > beside_z) ? 1 : 0;
  const int oy = m - ox - oz;
  const float sixth = (static_cast<float>(m) - (u + v + w)) * (1.0f / 6);
  const float x = u + sixth - static_cast<float>(ox), y = v + sixth - static_cast<float>(oy),
              z = w + sixth - static_cast<float>(oz);
  float falloff = multiply_add(-x, x, multiply_add(-y, y, multiply_add(-z, z, 0.5f)));
  falloff = falloff > 0 ? falloff : 0;
  falloff *= falloff;
  const uint32_t key = (i.key + (ox != 0 ? kPrimeX : 0)) ^ (j.key + (oy != 0 ? kPrimeY : 0)) ^
                       (k.key + (oz != 0 ? kPrimeZ : 0));
  return {key, x, y, z, falloff * falloff};
}

}  // namespace SCRD_ISA
}  // namespace scrd::simplex
