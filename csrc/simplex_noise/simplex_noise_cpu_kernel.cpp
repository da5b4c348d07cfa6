// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, with SCRD_ISA as its name. Plain loops over 64 points that the compiler
// turns into vector code; only table look-ups and sums of products are written for an instruction set.
//
// Where a point lies, which vertices it has and what they weigh depends on its coordinates alone. That is
// worked out once an octave for all seeds of a group, and so is where in the box of lattice points around the
// block a vertex lies: what is left for a seed is to go through its permutation for that box, to hand the
// gradients to the vertices and to multiply.
#include "common/byte_table.h"
#include "common/vectors.h"
#include "simplex_noise/octaves.h"

namespace scrd::simplex::SCRD_ISA {
namespace {

static_assert(kLanes == kTableLanes, "a table is looked up for all points at once");

/// The functions of a code or of an entry in simplex_noise.h, as tables of bytes.
struct Tables {
  uint8_t vertex[kVertices][kCodes];  // six bits of region_vertices
  uint8_t gradient[3][16];            // signed, by a half of gradient_halves
};

constexpr Tables make_tables() {
  Tables tables{};
  for (int code = 0; code < kCodes; ++code) {
    const uint64_t word = region_vertices(code);
    for (int v = 0; v < kVertices; ++v) tables.vertex[v][code] = static_cast<uint8_t>(word >> 6 * v & 63);
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

constexpr int kNumbers = 2 * kLanes;  // columns and lattice points of a block that may get a number

/// Coordinates modulo 256 along one axis that a block's lattice points may have.
struct Span {
  uint8_t first;
  int length;
};

/// What the points of a block have in common for all seeds, in one octave.
struct Geometry {
  alignas(64) float weight[kVertices][3][kLanes];   // falloff times displacement
  alignas(64) uint8_t index[kVertices][3][kLanes];  // lattice points; along x from the span's first
  Span x, y, z;
  // Neighbouring points have most vertices in common: the lattice points of a block fill a box, which is
  // small unless a cell is hardly larger than a pixel. Its columns (x, y) are numbered if they are few, and
  // so are all its points. A number of columns or points that is 0 means that they are not.
  int columns, points;
  alignas(64) uint8_t column_x[kNumbers], column_y[kNumbers], point_column[kNumbers], point_z[kNumbers];
  alignas(64) uint8_t column[kVertices][kLanes], point[kVertices][kLanes];
};

struct Cells {
  alignas(64) uint8_t origin[3][kLanes];                 // modulo 256
  alignas(64) float dx[kLanes], dy[kLanes], dz[kLanes];  // displacement from there
  alignas(64) uint8_t code[kLanes];
};

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
  convert(cell_x, cells.origin[0]);
  convert(cell_y, cells.origin[1]);
  convert(cell_z, cells.origin[2]);
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

/// The lattice points of slot `v`, and three times the displacement from the cell's origin to them.
void find_lattice_points(const Cells& cells, int v, Geometry& geometry, int8_t (*thirds)[kLanes]) {
  alignas(64) uint8_t vertex[kLanes];
  look_up(ByteTable<kCodes>(kTables.vertex[v]), cells.code, vertex);
  uint8_t (*index)[kLanes] = geometry.index[v];
  for (int i = 0; i < kLanes; ++i) {
    const uint8_t x = vertex[i] & 3, y = vertex[i] >> 2 & 3, z = vertex[i] >> 4 & 3;  // offsets + 1
    const uint8_t sum = static_cast<uint8_t>(x + y + z - 6);
    thirds[0][i] = static_cast<int8_t>(sum + 3 * x);
    thirds[1][i] = static_cast<int8_t>(sum + 3 * y);
    thirds[2][i] = static_cast<int8_t>(sum + 3 * z);
    index[0][i] = static_cast<uint8_t>(cells.origin[0][i] + x - 1);
    index[1][i] = static_cast<uint8_t>(cells.origin[1][i] + y - 1);
    index[2][i] = static_cast<uint8_t>(cells.origin[2][i] + z - 1);
  }
}

void find_vertices(const Cells& cells, float amplitude, Geometry& geometry) {
  alignas(64) int8_t thirds[3][kLanes];
  for (int v = 0; v < kVertices; ++v) {
    find_lattice_points(cells, v, geometry, thirds);
    float (*weight)[kLanes] = geometry.weight[v];
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const float x = displacement(cells.dx[i], thirds[0][i]);
      const float y = displacement(cells.dy[i], thirds[1][i]);
      const float z = displacement(cells.dz[i], thirds[2][i]);
      const float falling = falloff(x, y, z) * amplitude;
      weight[0][i] = falling * x;
      weight[1][i] = falling * y;
      weight[2][i] = falling * z;
    }
  }
}

Span find_span(const uint8_t* origin) {
  int8_t least = 0, most = 0;
  for (int i = 0; i < kLanes; ++i) {
    const int8_t relative = static_cast<int8_t>(origin[i] - origin[0]);
    least = relative < least ? relative : least;
    most = relative > most ? relative : most;
  }
  constexpr int kBefore = 1, kBeyond = 2;  // vertices beside a cell's origin
  return {static_cast<uint8_t>(origin[0] + least - kBefore), most - least + kBefore + kBeyond + 1};
}

/// Lets cells count from the first along x, where 64 entries of a permutation will do if the span is short.
void find_spans(Cells& cells, Geometry& geometry) {
  geometry.x = find_span(cells.origin[0]);
  geometry.y = find_span(cells.origin[1]);
  geometry.z = find_span(cells.origin[2]);
  if (geometry.x.length > kLanes) geometry.x.first = 0;
  uint8_t* x = cells.origin[0];
  for (int i = 0; i < kLanes; ++i) x[i] = static_cast<uint8_t>(x[i] - geometry.x.first);
}

/// Row and place in the row of each of the first kNumbers elements of a table.
void split_numbers(int width, uint8_t first, uint8_t* row, uint8_t* place) {
  const int inverse = 65536 / width + 1;
  for (int n = 0; n < kNumbers; ++n) {
    const int quotient = n * inverse >> 16;
    row[n] = static_cast<uint8_t>(quotient);
    place[n] = static_cast<uint8_t>(first + n - quotient * width);
  }
}

void number_box(Geometry& geometry) {
  const Span y = geometry.y, z = geometry.z;
  geometry.columns = geometry.x.length * y.length;
  geometry.points = geometry.columns * z.length;
  if (geometry.columns > kNumbers) geometry.columns = 0;
  if (geometry.points > kNumbers) geometry.points = 0;
  if (geometry.columns == 0) return;
  split_numbers(y.length, y.first, geometry.column_x, geometry.column_y);
  if (geometry.points != 0) split_numbers(z.length, z.first, geometry.point_column, geometry.point_z);
  for (int v = 0; v < kVertices; ++v) {
    const uint8_t (*index)[kLanes] = geometry.index[v];
    uint8_t *column = geometry.column[v], *point = geometry.point[v];
    for (int i = 0; i < kLanes; ++i) {
      column[i] = static_cast<uint8_t>(index[0][i] * y.length + static_cast<uint8_t>(index[1][i] - y.first));
      point[i] = static_cast<uint8_t>(column[i] * z.length + static_cast<uint8_t>(index[2][i] - z.first));
    }
  }
}

/// The gradients at lattice points, 64 at a time.
class Gradients {
 public:
  Gradients(const SeedState& seed, const Geometry& geometry)
      : narrow_(geometry.x.length <= kLanes),
        first_(seed.permutation + geometry.x.first),
        permutation_(seed.permutation),
        last_(seed.gradient) {}
  /// What a permutation has for columns.
  void of_columns(const uint8_t* x, const uint8_t* y, uint8_t* entry) const {
    if (narrow_) {
      look_up(first_, x, entry);
    } else {
      look_up(permutation_, x, entry);
    }
    add(y, entry);
    look_up(permutation_, entry, entry);
  }
  /// The gradients in columns; `gradient` has the columns' entries before.
  void in_columns(const uint8_t* z, uint8_t* gradient) const {
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

/// The gradients at all vertices, by way of the numbered columns and points; `entries` are the columns'.
template <int kColumns>
void find_numbered(const Gradients& gradients, const Geometry& geometry, const uint8_t* entries,
                   uint8_t (*gradient)[kLanes]) {
  const ByteTable<kColumns> columns(entries);
  if (geometry.points == 0) {
    for (int v = 0; v < kVertices; ++v) {
      look_up(columns, geometry.column[v], gradient[v]);
      gradients.in_columns(geometry.index[v][2], gradient[v]);
    }
    return;
  }
  alignas(64) uint8_t at_point[kNumbers];
  for (int i = 0; i < geometry.points; i += kLanes) {
    look_up(columns, geometry.point_column + i, at_point + i);
    gradients.in_columns(geometry.point_z + i, at_point + i);
  }
  const ByteTable<kNumbers> points(at_point);
  for (int v = 0; v < kVertices; ++v) look_up(points, geometry.point[v], gradient[v]);
}

/// The gradients at all vertices.
void find_gradients(const SeedState& seed, const Geometry& geometry, uint8_t (*gradient)[kLanes]) {
  const Gradients gradients(seed, geometry);
  if (geometry.columns == 0) {
    for (int v = 0; v < kVertices; ++v) {
      gradients.of_columns(geometry.index[v][0], geometry.index[v][1], gradient[v]);
      gradients.in_columns(geometry.index[v][2], gradient[v]);
    }
    return;
  }
  alignas(64) uint8_t entries[kNumbers];
  for (int i = 0; i < geometry.columns; i += kLanes) {
    gradients.of_columns(geometry.column_x + i, geometry.column_y + i, entries + i);
  }
  if (geometry.columns <= kLanes) {
    find_numbered<kLanes>(gradients, geometry, entries, gradient);
  } else {
    find_numbered<kNumbers>(gradients, geometry, entries, gradient);
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

void opensimplex(const Points& points, const SeedState* const* seeds, int count, const Fractal& fractal,
                 float (*out)[kLanes]) {
  Pixels pixels;
  convert(points.x, pixels.x);
  convert(points.y, pixels.y);
  convert(points.z, pixels.z);
  const auto find = [&](double frequency, float amplitude, Geometry& geometry) {
    Cells cells;
    find_cells(pixels, frequency, cells);
    find_spans(cells, geometry);
    find_vertices(cells, amplitude / kNorm, geometry);
    number_box(geometry);
  };
  sum_octaves<Geometry>(seeds, count, fractal, out, find, add_gradients);
}

}  // namespace

extern const NoiseKernel opensimplex_kernel = opensimplex;

}  // namespace scrd::simplex::SCRD_ISA
