// SPDX-License-Identifier: Apache-2.0
// The matrices of the axes on the CPU, and the cache that keeps them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "anomaly_map/anomaly_map_cpu.h"

namespace scrd::maps {

/// What an AxisView points to, and the means of the matrix's columns, with which a mean needs no map.
template <typename A>
struct AxisTable {
  explicit AxisTable(const Axis& axis);
  AxisView<A> view() const;

  Axis axis;
  int64_t row_limit, block_limit;
  std::vector<int32_t> row_first, row_count, block_first, block_count;
  std::vector<A> rows, blocks;
  std::vector<double> column_means;  // [source]
};

/// The table of an axis, made when it is first asked for. The last 64 of each type are kept; memory of the
/// host, and no tensor, so that no mode of torch can leave its mark on them.
template <typename A>
std::shared_ptr<const AxisTable<A>> axis_table(const Axis& axis);

}  // namespace scrd::maps
