// SPDX-License-Identifier: Apache-2.0
// Noise of one point on a GPU, and what a block keeps in shared memory for it.
#pragma once

#include "common/kernel_prelude.cuh"
#include "simplex_noise/hashed_noise.h"
#include "simplex_noise/simplex_noise.h"

namespace scrd::simplex {

constexpr int kBlock = kEntries;  // threads: one for each entry of a permutation

/// The state `steps` steps after `state`: the powers of the step's affine map.
__device__ inline uint64_t skip_states(uint64_t state, int steps) {
  uint64_t factor = 6364136223846793005u, summand = 1442695040888963407u;
  for (; steps > 0; steps >>= 1) {
    if ((steps & 1) != 0) state = state * factor + summand;
    summand *= factor + 1;
    factor *= factor;
  }
  return state;
}

// The noises below have `Shared`, what a block keeps of a seed; `prepare`, by which all threads of the block
// fill it; `unit`, what the launcher makes of the first octave's frequency; and `octave`, one octave at a
// pixel, of that unit.

class OpenSimplex {
 public:
  static constexpr int kWords = kEntries / 32;
  struct Shared {
    SharedArray<uint8_t, kEntries> permutation,
        gradient;  // gradient: gradient_code of the permutation's entries
    SharedArray<uint64_t, kCodes> vertices;
    SharedArray<uint32_t, kEntries * kWords>
        drawn;  // row p: bit n - 1 is set if step n of the shuffle drew place p
    SharedArray<uint16_t, kEntries> next;
  };

  static double unit(double frequency) { return frequency; }

  /// The shuffle without its serial loop: step n puts what lies at place `draw` into
  /// place n - 1, and what lay there into place `draw`. So the value that a step finds at a place is what the
  /// last step before it that drew the place put there, which is what that step m found at place m - 1, and
  /// so on; a place that was never drawn holds its own number. Steps count down from 256.
  static __device__ void prepare(Shared& shared, int64_t seed) {
    const int thread = static_cast<int>(threadIdx.x), n = thread + 1;
    __syncthreads();  // the tables of the seed before may still be read
    if (thread < kCodes) shared.vertices[thread] = region_vertices(thread);
    for (int word = 0; word < kWords; ++word) shared.drawn[word * kEntries + thread] = 0;
    const int draw = draw_entry(skip_states(static_cast<uint64_t>(seed), kWarmUp + 1 + kEntries - n), n);
    __syncthreads();
    atomicOr(&shared.drawn[draw * kWords + thread / 32], 1u << (thread % 32));
    __syncthreads();
    shared.next[thread] = static_cast<uint16_t>(step_that_drew(shared, n - 1, n));
    __syncthreads();
    int entry = draw;
    for (int step = step_that_drew(shared, draw, n); step != 0; step = shared.next[step - 1])
      entry = step - 1;
    shared.permutation[thread] = static_cast<uint8_t>(entry);
    shared.gradient[thread] = gradient_code(entry);
    __syncthreads();
  }

  /// The last step before step n that drew a place, which is the smallest number above n; 0 if none did.
  static __device__ int step_that_drew(Shared& shared, int place, int n) {
    uint32_t mask = ~0u << (n % 32);  // of the first word: bits n and up are the steps above n
    for (int word = n / 32; word < kWords; ++word) {
      const uint32_t steps = shared.drawn[place * kWords + word] & mask;
      if (steps != 0) return word * 32 + __ffs(static_cast<int>(steps));
      mask = ~0u;
    }
    return 0;
  }

  static __device__ float octave(Shared& shared, int x, int y, int z, double unit) {
    const Place place = locate(x * unit, y * unit, z * unit);
    const uint64_t word = shared.vertices[region_code(place.x, place.y, place.z)];
    const double third = (place.x + place.y + place.z) * (1.0 / 3);
    const float dx = static_cast<float>(place.x + third), dy = static_cast<float>(place.y + third),
                dz = static_cast<float>(place.z + third);
    const int cell_x = static_cast<int>(low_bits(place.cell_x) & 255),
              cell_y = static_cast<int>(low_bits(place.cell_y) & 255),
              cell_z = static_cast<int>(low_bits(place.cell_z) & 255);
    float value = 0;
    for (int v = 0; v < kVertices; ++v) {
      const int i = vertex_offset(word, v, 0), j = vertex_offset(word, v, 1), k = vertex_offset(word, v, 2);
      const float to_x = displacement(dx, 4 * i + j + k), to_y = displacement(dy, i + 4 * j + k),
                  to_z = displacement(dz, i + j + 4 * k);
      int entry = shared.permutation[(cell_x + i) & 255];
      entry = shared.permutation[(entry + cell_y + j) & 255];
      const int gradient = shared.gradient[(entry + cell_z + k) & 255];
      value = multiply_add(falloff(to_x, to_y, to_z), along_gradient(gradient, to_x, to_y, to_z), value);
    }
    return value / kNorm;
  }
};

class Hashed {
 public:
  struct Shared {
    SharedArray<HashKeys, 1> keys;
  };

  static double unit(double frequency) { return lattice_unit(frequency); }

  static __device__ void prepare(Shared& shared, int64_t seed) {
    __syncthreads();  // the keys of the seed before may still be read
    if (threadIdx.x == 0) shared.keys[0] = hash_keys(seed);
    __syncthreads();
  }

  static __device__ float octave(Shared& shared, int x, int y, int z, double unit) {
    const HashKeys keys = shared.keys[0];
    const int64_t step = lattice_step(unit), sum = static_cast<int64_t>(x) + y + z;
    const LatticePlace i = lattice_place(sum + 3 * static_cast<int64_t>(x), step, kPrimeX),
                       j = lattice_place(sum + 3 * static_cast<int64_t>(y), step, kPrimeY),
                       k = lattice_place(sum + 3 * static_cast<int64_t>(z), step, kPrimeZ);
    float value = 0;
    for (int m = 0; m < kHashedVertices; ++m) {
      const HashedVertex vertex = hashed_vertex(i, j, k, m);
      const float along = along_edge(hash_gradient(vertex.key, keys), vertex.x, vertex.y, vertex.z);
      value = multiply_add(vertex.falloff, along, value);
    }
    return value * kHashedNorm;
  }
};

/// Octaves as a kernel takes them: the first has the noise's `unit` in place of its frequency.
template <typename Noise>
Fractal with_unit(const Fractal& fractal) {
  return {fractal.octaves, fractal.persistence, Noise::unit(fractal.frequency)};
}

/// The sum of all octaves at a pixel.
template <typename Noise>
__device__ float fractal_noise(typename Noise::Shared& shared, const Fractal& fractal, int x, int y, int z) {
  float value = 0;
  double amplitude = 1, unit = fractal.frequency;
  for (int64_t octave = 0; octave < fractal.octaves; ++octave) {
    value = multiply_add(static_cast<float>(amplitude), Noise::octave(shared, x, y, z, unit), value);
    amplitude *= fractal.persistence;
    unit *= 2;
  }
  return value;
}

}  // namespace scrd::simplex
