// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, with SCRD_ISA as its name. Plain loops over 64 points that the compiler
// turns into vector code; only table look-ups and sums of products are written for an instruction set.
//
// Where a point lies, which vertices it has and what they weigh depends on its coordinates alone. That is
// worked out once an octave for all seeds of a group, and so is which vertices are the same lattice point:
// what is left for a seed is to find the gradients of some 10 to 100 lattice points, to hand them to the
// vertices and to multiply.
#include "common/byte_table.h"
#include "common/vectors.h"
#include "simplex_noise/lattice_numbers.h"
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
  uint8_t gradient[3][16];               // by a half of gradient_halves
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
  }
  for (int half = 0; half < 16; ++half) {
    const int of_z = (half & 3) | (half & 4) << 2;
    const float components[3] = {along_gradient(half, 1, 0, 0), along_gradient(half, 0, 1, 0),
                                 along_gradient(of_z, 0, 0, 1)};
    for (int axis = 0; axis < 3; ++axis) {
      tables.gradient[axis][half] = static_cast<uint8_t>(static_cast<int>(components[axis]));
    }
  }
  return tables;
}

alignas(64) constexpr Tables kTables = make_tables();

constexpr int kNumbers = 2 * kLanes;  // lattice points of a block that get a number

/// What the points of a block have in common for all seeds, in one octave.
struct Geometry {
  alignas(64) float weight[kVertices][3][kLanes];  // falloff times displacement
  // Lattice points count from `first_x` along x, modulo 256. If `narrow`, they do not reach 64 there.
  uint8_t first_x;
  bool narrow;
  // Either the block's different lattice points and which of them each vertex is, or, with `numbers` 0, the
  // lattice point of each vertex.
  int numbers;
  alignas(64) uint8_t point[3][kNumbers];
  alignas(64) uint8_t number[kVertices][kLanes];
  alignas(64) uint8_t index[kVertices][3][kLanes];
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

void find_weights(const Cells& cells, float amplitude, Geometry& geometry) {
  alignas(64) uint8_t thirds[3][kLanes];
  for (int v = 0; v < kVertices; ++v) {
    for (int axis = 0; axis < 3; ++axis) {
      look_up(ByteTable<kCodes>(kTables.thirds[v][axis]), cells.code, thirds[axis]);
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

/// Finds out how far the lattice points reach along x, and lets the cells count from the first.
void count_from_first(Cells& cells, Geometry& geometry) {
  int8_t least = 0, most = 0;
  for (int i = 0; i < kLanes; ++i) {
    const int8_t x = static_cast<int8_t>(cells.x[i] - cells.x[0]);
    least = x < least ? x : least;
    most = x > most ? x : most;
  }
  constexpr int kBefore = 1, kBeyond = 2;  // vertices beside a cell's origin
  geometry.narrow = most + kBeyond - (least - kBefore) < kLanes;
  geometry.first_x = geometry.narrow ? static_cast<uint8_t>(cells.x[0] + least - kBefore) : 0;
  for (int i = 0; i < kLanes; ++i) cells.x[i] = static_cast<uint8_t>(cells.x[i] - geometry.first_x);
}

void find_lattice_points(const Cells& cells, Geometry& geometry) {
  const uint8_t* origins[3] = {cells.x, cells.y, cells.z};
  alignas(64) uint8_t offset[kLanes];
  for (int v = 0; v < kVertices; ++v) {
    for (int axis = 0; axis < 3; ++axis) {
      look_up(ByteTable<kCodes>(kTables.offset[v][axis]), cells.code, offset);
      uint8_t* index = geometry.index[v][axis];
      for (int i = 0; i < kLanes; ++i) index[i] = static_cast<uint8_t>(origins[axis][i] + offset[i]);
    }
  }
}

/// Numbers the lattice points, unless they are more than kNumbers: then `numbers` stays 0.
void number_lattice_points(const Cells& cells, Geometry& geometry) {
  // Points of the same region of the same cell have the same vertices.
  Numbering<7> regions;
  alignas(64) uint8_t region[kLanes], numbers[kVertices][kLanes] = {};
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t cell = cells.x[i] | cells.y[i] << 8 | cells.z[i] << 16;
    region[i] = static_cast<uint8_t>(regions.of(cell | static_cast<uint32_t>(cells.code[i]) << 24));
  }
  constexpr int kTooMany = kLanes * 15 / 16;  // of so small regions most vertices are different
  if (regions.count() > kTooMany) return;
  Numbering<8> points;
  for (int r = 0; r < regions.count(); ++r) {
    const uint32_t key = regions.keys()[r];
    const uint32_t cell = lattice_key(key & 255, key >> 8 & 255, key >> 16 & 255);
#pragma GCC unroll 8
    for (int v = 0; v < kVertices; ++v) {
      const uint32_t vertex = cell + kVertexKeys.of[key >> 24][v];
      numbers[v][r] = static_cast<uint8_t>(points.of(vertex & kKeyBits));
    }
    if (points.count() > kNumbers) return;
  }
  for (int v = 0; v < kVertices; ++v) look_up(ByteTable<kLanes>(numbers[v]), region, geometry.number[v]);
  for (int axis = 0; axis < 3; ++axis) {
    const uint32_t* keys = points.keys();
    for (int i = 0; i < kNumbers; ++i) geometry.point[axis][i] = static_cast<uint8_t>(keys[i] >> 10 * axis);
  }
  geometry.numbers = points.count();
}

/// The gradients at 64 lattice points.
class Gradients {
 public:
  Gradients(const SeedState& seed, const Geometry& geometry)
      : narrow_(geometry.narrow),
        first_(seed.permutation + geometry.first_x),
        permutation_(seed.permutation),
        last_(seed.gradient) {}
  void at(const uint8_t* x, const uint8_t* y, const uint8_t* z, uint8_t* gradient) const {
    if (narrow_) {
      look_up(first_, x, gradient);
    } else {
      look_up(permutation_, x, gradient);
    }
    add(y, gradient);
    look_up(permutation_, gradient, gradient);
    add(z, gradient);
    look_up(last_, gradient, gradient);
  }

 private:
  static void add(const uint8_t* shift, uint8_t* entry) {
    for (int i = 0; i < kLanes; ++i) entry[i] = static_cast<uint8_t>(entry[i] + shift[i]);
  }
  bool narrow_;
  ByteTable<kLanes> first_;
  ByteTable<kEntries> permutation_, last_;
};

/// The gradients at all vertices.
void find_gradients(const SeedState& seed, const Geometry& geometry, uint8_t (*gradient)[kLanes]) {
  const Gradients gradients(seed, geometry);
  if (geometry.numbers == 0) {
    for (int v = 0; v < kVertices; ++v) {
      const uint8_t (*index)[kLanes] = geometry.index[v];
      gradients.at(index[0], index[1], index[2], gradient[v]);
    }
    return;
  }
  alignas(64) uint8_t numbered[kNumbers];
  for (int i = 0; i < geometry.numbers; i += kLanes) {
    gradients.at(geometry.point[0] + i, geometry.point[1] + i, geometry.point[2] + i, numbered + i);
  }
  if (geometry.numbers <= kLanes) {
    const ByteTable<kLanes> table(numbered);
    for (int v = 0; v < kVertices; ++v) look_up(table, geometry.number[v], gradient[v]);
  } else {
    const ByteTable<kNumbers> table(numbered);
    for (int v = 0; v < kVertices; ++v) look_up(table, geometry.number[v], gradient[v]);
  }
}

void add_gradients(const SeedState& seed, const Geometry& geometry, float* sum) {
  alignas(64) uint8_t gradient[kVertices][kLanes];
  alignas(64) int8_t along[kVertices][3][kLanes];
  find_gradients(seed, geometry, gradient);
  const ByteTable<16> along_x(kTables.gradient[0]), along_y(kTables.gradient[1]),
      along_z(kTables.gradient[2]);
  for (int v = 0; v < kVertices; ++v) {
    look_up(along_x, gradient[v], along[v][0]);
    look_up(along_y, gradient[v], along[v][1]);
    look_up_high(along_z, gradient[v], along[v][2]);
  }
  // Two sums side by side: one addition waits for the other.
  constexpr int kStep = Floats::kLanes;
  for (int i = 0; i < kLanes; i += 2 * kStep) {
    Floats first = Floats::load(sum + i), second = Floats::load(sum + i + kStep);
#pragma GCC unroll 24
    for (int term = 0; term < 3 * kVertices; ++term) {
      const int8_t* gradients = along[term / 3][term % 3] + i;
      const float* weights = geometry.weight[term / 3][term % 3] + i;
      first = multiply_add(Floats::load(gradients), Floats::load(weights), first);
      second = multiply_add(Floats::load(gradients + kStep), Floats::load(weights + kStep), second);
    }
    first.store(sum + i);
    second.store(sum + i + kStep);
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

constexpr int kWorthNumbers = 3;  // seeds

void opensimplex(const Points& points, const SeedState* const* seeds, int count, const Fractal& fractal,
                 float (*out)[kLanes]) {
  Pixels pixels;
  convert(points.x, pixels.x);
  convert(points.y, pixels.y);
  convert(points.z, pixels.z);
  const auto find = [&](double frequency, float amplitude, Geometry& geometry) {
    Cells cells;
    find_cells(pixels, frequency, cells);
    find_weights(cells, amplitude / kNorm, geometry);
    count_from_first(cells, geometry);
    geometry.numbers = 0;
    if (!kLargeTablesAreFast && count >= kWorthNumbers) number_lattice_points(cells, geometry);
    if (geometry.numbers == 0) find_lattice_points(cells, geometry);
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
