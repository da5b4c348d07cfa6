// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of anomaly_map, one set per instruction set, as the binding sees them. No torch header:
// what a kernel for a newer CPU includes must not leak into code that runs on every CPU.
#pragma once

#include <cstdint>

#include "anomaly_map/anomaly_map.h"

namespace scrd::maps {

constexpr int kColumns = 16;  // of the map that a kernel makes at once, of small maps' columns
constexpr int kChunk = 64;    // and of the map
constexpr int kBins = 1024;   // of a histogram of pixels

/// The matrix of one axis, twice: by rows, of which only the band is kept, and by blocks of 16 rows, of which
/// the union of their bands is kept. `A` is the type of the arithmetic.
template <typename A>
struct AxisView {
  int64_t source, target;
  int64_t row_limit, block_limit;            // entries that a row and a block have room for
  const int32_t *row_first, *row_count;      // [target]
  const A* rows;                             // [target, row_limit]
  const int32_t *block_first, *block_count;  // [blocks]
  const A* blocks;                           // [blocks, block_limit, 16]
};

/// One scale of one image.
template <typename A>
struct ScaleView {
  const A* map;  // [rows.source, columns.source]
  A weight;
  AxisView<A> rows, columns;
  /// A kernel's own: what it has made of M_k B_k^T, from row `spread_first` on.
  const A* spread;
  int64_t spread_first;
};

/// How a histogram's bins follow from a pixel's key: (key - low) >> shift.
template <typename A>
struct Bins {
  typename KeyOf<A>::Type low;
  int shift;
};

/// What lies at or above `upper`, summed, and what lies in [lower, upper), collected.
template <typename A>
struct Split {
  double sum;
  int64_t above, inside;
};

template <typename A>
struct TypedKernels {
  /// Rows begin ... end - 1 of the map, out [end - begin, width]; `scratch` has scratch_size() elements.
  void (*strip)(ScaleView<A>* scales, int count, int64_t begin, int64_t end, A* scratch, A* out);
  /// The least and the largest pixel; returns whether one is NaN.
  bool (*range)(const A* pixels, int64_t count, A* least, A* largest);
  /// Adds to bins [kBins].
  void (*histogram)(const A* pixels, int64_t count, const Bins<A>& bins, uint32_t* counts);
  /// `inside` has room for all pixels.
  Split<A> (*split)(const A* pixels, int64_t count, A lower, A upper, bool no_upper, A* inside);
};

struct CpuKernels {
  TypedKernels<float> of_float;
  TypedKernels<double> of_double;
};

namespace baseline {
extern const CpuKernels kernels;
}
namespace avx2 {
extern const CpuKernels kernels;
}
namespace avx512 {
extern const CpuKernels kernels;
}

inline namespace SCRD_ISA {

/// Columns of a row of scratch memory.
inline int64_t padded(int64_t width) { return (width + kChunk - 1) / kChunk * kChunk; }

/// The rows of M_k B_k^T that rows begin ... end - 1 of the map need.
template <typename A>
Band spread_rows(const ScaleView<A>& scale, int64_t begin, int64_t end) {
  return {scale.rows.row_first[begin], scale.rows.row_first[end - 1] + scale.rows.row_count[end - 1]};
}

template <typename A>
int64_t scratch_size(const ScaleView<A>* scales, int count, int64_t begin, int64_t end) {
  int64_t rows = 0;
  for (int k = 0; k < count; ++k) {
    const Band needed = spread_rows(scales[k], begin, end);
    rows += needed.end - needed.first;
  }
  return rows * padded(scales[0].columns.target);
}

}  // namespace SCRD_ISA
}  // namespace scrd::maps
