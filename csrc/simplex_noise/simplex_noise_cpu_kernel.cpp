// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, with SCRD_ISA as its name. Plain loops over 64 points that the compiler
// turns into vector code; only the table look-ups are written for an instruction set.
//
// Where a point lies, which vertices it has and what they weigh depends on its coordinates alone. That is
// worked out once an octave for all seeds of a group; what is left for a seed is to look up its gradients and
// to multiply.
#include "common/byte_table.h"
#include "simplex_noise/simplex_noise_cpu.h"

namespace scrd::simplex::SCRD_ISA {
namespace {

static_assert(kLanes == kTableLanes, "a table is looked up for all points at once");

// -------------------------------------------------------------------------------------------------
// opensimplex

/// The functions of a code or of an entry in simplex_noise.h, as tables of signed bytes.
struct Tables {
  uint8_t offset[kVertices][3][kCodes];
  uint8_t thirds[kVertices][3][kCodes];  // of the displacement between the cell's origin and a vertex
  uint8_t gradient[3][kCodes];           // by gradient code
};

constexpr Tables make_tables() {
  Tables tables{};
  for (int code = 0; code < kCodes; ++code) {
    const uint64_t word = region_vertices(code);
    for (int v = 0; v < kVertices; ++v) {
      const int sum = vertex_offset(word, v, 0) + vertex_offset(word, v, 1) + vertex_offset(word, v, 2);
      for (int axis = 0; axis < 3; ++axis) {
        const int offset = vertex_offset(word, v, axis);
        tables.offset[v][axis][code] = static_cast<uint8_t>(offset);
        tables.thirds[v][axis][code] = static_cast<uint8_t>(3 * offset + sum);
      }
    }
    for (int axis = 0; axis < 3; ++axis) {
      const float component = along_gradient(code, axis == 0, axis == 1, axis == 2);
      tables.gradient[axis][code] = static_cast<uint8_t>(static_cast<int>(component));
    }
  }
  return tables;
}

alignas(64) constexpr Tables kTables = make_tables();

/// What the points of a block have in common for all seeds, in one octave.
struct Geometry {
  alignas(64) uint8_t index[kVertices][3][kLanes];  // lattice point, modulo 256
  alignas(64) float weight[kVertices][3][kLanes];   // falloff times displacement
};

struct Cells {
  alignas(64) uint8_t x[kLanes], y[kLanes], z[kLanes];   // origin, modulo 256
  alignas(64) float dx[kLanes], dy[kLanes], dz[kLanes];  // displacement from there
  alignas(64) uint8_t code[kLanes];
};

template <typename From, typename To>
void convert(const From* from, To* to) {
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<To>(from[i]);
}

/// Pixel coordinates in double, which all octaves multiply.
struct Pixels {
  alignas(64) double x[kLanes], y[kLanes], z[kLanes];
};

void find_cells(const Pixels& pixels, double frequency, Cells& cells) {
  // 64-bit lanes first, narrowed afterwards: a loop of mixed widths would run out of registers.
  alignas(64) double x[kLanes], y[kLanes], z[kLanes];
  alignas(64) uint64_t cell_x[kLanes], cell_y[kLanes], cell_z[kLanes], code[kLanes];
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) {
    const Place place = locate(pixels.x[i] * frequency, pixels.y[i] * frequency, pixels.z[i] * frequency);
    cell_x[i] = low_bits(place.cell_x);
    cell_y[i] = low_bits(place.cell_y);
    cell_z[i] = low_bits(place.cell_z);
    x[i] = place.x;
    y[i] = place.y;
    z[i] = place.z;
  }
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) code[i] = static_cast<uint64_t>(region_code(x[i], y[i], z[i]));
  convert(cell_x, cells.x);
  convert(cell_y, cells.y);
  convert(cell_z, cells.z);
  convert(code, cells.code);
  convert(x, cells.dx);
  convert(y, cells.dy);
  convert(z, cells.dz);
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) {
    const float third = (cells.dx[i] + cells.dy[i] + cells.dz[i]) * (1.0f / 3);
    cells.dx[i] += third;
    cells.dy[i] += third;
    cells.dz[i] += third;
  }
}

void find_vertices(const Cells& cells, float amplitude, Geometry& geometry) {
  const uint8_t* origins[3] = {cells.x, cells.y, cells.z};
  alignas(64) uint8_t offset[kLanes], thirds[3][kLanes];
  for (int v = 0; v < kVertices; ++v) {
    for (int axis = 0; axis < 3; ++axis) {
      SmallByteTable(kTables.offset[v][axis]).look_up(cells.code, offset);
      SmallByteTable(kTables.thirds[v][axis]).look_up(cells.code, thirds[axis]);
      uint8_t* index = geometry.index[v][axis];
      for (int i = 0; i < kLanes; ++i) index[i] = static_cast<uint8_t>(origins[axis][i] + offset[i]);
    }
    float (*weight)[kLanes] = geometry.weight[v];
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const float x = displacement(cells.dx[i], static_cast<int8_t>(thirds[0][i]));
      const float y = displacement(cells.dy[i], static_cast<int8_t>(thirds[1][i]));
      const float z = displacement(cells.dz[i], static_cast<int8_t>(thirds[2][i]));
      const float falling = falloff(x, y, z) * amplitude;
      weight[0][i] = falling * x;
      weight[1][i] = falling * y;
      weight[2][i] = falling * z;
    }
  }
}

void look_up(const ByteTable& table, const uint8_t* shift, uint8_t* entry) {
  for (int i = 0; i < kLanes; ++i) entry[i] = static_cast<uint8_t>(entry[i] + shift[i]);
  table.look_up(entry, entry);
}

void add_gradients(const SeedState& seed, const Geometry& geometry, float* sum) {
  const ByteTable permutation(seed.permutation), last(seed.gradient);
  const SmallByteTable along_x(kTables.gradient[0]), along_y(kTables.gradient[1]),
      along_z(kTables.gradient[2]);
  for (int v = 0; v < kVertices; ++v) {
    alignas(64) uint8_t entry[kLanes], x[kLanes], y[kLanes], z[kLanes];
    permutation.look_up(geometry.index[v][0], entry);
    look_up(permutation, geometry.index[v][1], entry);
    look_up(last, geometry.index[v][2], entry);
    along_x.look_up(entry, x);
    along_y.look_up(entry, y);
    along_z.look_up(entry, z);
    const float (*weight)[kLanes] = geometry.weight[v];
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const float along_xy = multiply_add(static_cast<int8_t>(y[i]), weight[1][i],
                                          multiply_add(static_cast<int8_t>(x[i]), weight[0][i], sum[i]));
      sum[i] = multiply_add(static_cast<int8_t>(z[i]), weight[2][i], along_xy);
    }
  }
}

// ------------------------------------------------------------------------------------------------------
// hashed

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

// -----------------------------------------------------------------------------------------------------
// octaves

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

void opensimplex(const Points& points, const SeedState* const* seeds, int count, const Fractal& fractal,
                 float (*out)[kLanes]) {
  Pixels pixels;
  convert(points.x, pixels.x);
  convert(points.y, pixels.y);
  convert(points.z, pixels.z);
  const auto find = [&](double frequency, float amplitude, Geometry& geometry) {
    Cells cells;
    find_cells(pixels, frequency, cells);
    find_vertices(cells, amplitude / kNorm, geometry);
  };
  sum_octaves<Geometry>(seeds, count, fractal, out, find, add_gradients);
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

extern const CpuKernels kernels{opensimplex, hashed};

}  // namespace scrd::simplex::SCRD_ISA
