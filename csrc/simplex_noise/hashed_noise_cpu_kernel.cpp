// SPDX-License-Identifier: Apache-2.0
// The variant "hashed", compiled once per instruction set, with SCRD_ISA as its name. Plain loops over 64
// points that the compiler turns into vector code.
#include "simplex_noise/octaves.h"

namespace scrd::simplex::SCRD_ISA {
namespace {

struct HashedGeometry {
  alignas(64) uint32_t key[kHashedVertices][kLanes];
  alignas(64) float weight[kHashedVertices][3][kLanes];
};

/// x + y + z + 3 times each coordinate, which all octaves multiply.
struct Thirds {
  alignas(64) int64_t of[3][kLanes];
};

Thirds find_thirds(const Points& points) {
  Thirds thirds;
  const int32_t* coordinates[3] = {points.x, points.y, points.z};
  for (int axis = 0; axis < 3; ++axis) {
    for (int i = 0; i < kLanes; ++i) {
      const int64_t sum = static_cast<int64_t>(points.x[i]) + points.y[i] + points.z[i];
      thirds.of[axis][i] = sum + 3 * static_cast<int64_t>(coordinates[axis][i]);
    }
  }
  return thirds;
}

void find_hashed_vertices(const Thirds& thirds, double frequency, float amplitude, HashedGeometry& geometry) {
  const int64_t step = lattice_step(lattice_unit(frequency));
  constexpr uint32_t kPrimes[3] = {kPrimeX, kPrimeY, kPrimeZ};
  alignas(64) uint32_t key[3][kLanes];
  alignas(64) float fraction[3][kLanes];
  for (int axis = 0; axis < 3; ++axis) {
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const LatticePlace place = lattice_place(thirds.of[axis][i], step, kPrimes[axis]);
      key[axis][i] = place.key;
      fraction[axis][i] = place.fraction;
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < kHashedVertices; ++m) {
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const HashedVertex vertex = hashed_vertex({key[0][i], fraction[0][i]}, {key[1][i], fraction[1][i]},
                                                {key[2][i], fraction[2][i]}, m);
      const float falling = vertex.falloff * amplitude;
      geometry.key[m][i] = vertex.key;
      geometry.weight[m][0][i] = falling * vertex.x;
      geometry.weight[m][1][i] = falling * vertex.y;
      geometry.weight[m][2][i] = falling * vertex.z;
    }
  }
}

void add_hashed_gradients(const SeedState& seed, const HashedGeometry& geometry, float* sum) {
  const HashKeys keys = seed.keys;
  for (int m = 0; m < kHashedVertices; ++m) {
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      sum[i] += along_edge(hash_gradient(geometry.key[m][i], keys), geometry.weight[m][0][i],
                           geometry.weight[m][1][i], geometry.weight[m][2][i]);
    }
  }
}

void hashed(const Points& points, const SeedState* const* seeds, int count, const Fractal& fractal,
            float (*out)[kLanes]) {
  const Thirds thirds = find_thirds(points);
  const auto find = [&](double frequency, float amplitude, HashedGeometry& geometry) {
    find_hashed_vertices(thirds, frequency, amplitude * kHashedNorm, geometry);
  };
  sum_octaves<HashedGeometry>(seeds, count, fractal, out, find, add_hashed_gradients);
}

}  // namespace

extern const NoiseKernel hashed_kernel = hashed;

}  // namespace scrd::simplex::SCRD_ISA
