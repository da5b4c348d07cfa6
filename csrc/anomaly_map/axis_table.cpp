// SPDX-License-Identifier: Apache-2.0
#include "anomaly_map/axis_table.h"

#include <algorithm>
#include <list>
#include <mutex>

namespace scrd::maps {
namespace {

/// Row by row in double, [target, row_limit].
std::vector<double> make_rows(const Axis& axis, int64_t limit) {
  const int64_t radius = axis.radius();
  std::vector<double> taps;
  double total = 0;
  for (int64_t offset = -radius; offset <= radius; ++offset) {
    taps.push_back(gaussian(offset, axis.sigma));
    total += taps.back();
  }
  std::vector<double> rows(static_cast<size_t>(axis.target * limit));
  for (int64_t place = 0; place < axis.target; ++place) {
    const int64_t start = place * limit - band(axis, place).first;
    for (int64_t offset = -radius; offset <= radius; ++offset) {
      const Between at = between(axis, folded(place + offset, axis.target, axis.mirror));
      const double tap = taps[static_cast<size_t>(offset + radius)] / total;
      rows[static_cast<size_t>(start + at.first)] += tap * (1 - at.share);
      if (at.share > 0) rows[static_cast<size_t>(start + at.first + 1)] += tap * at.share;
    }
  }
  return rows;
}

}  // namespace

template <typename A>
AxisTable<A>::AxisTable(const Axis& made_for) : axis(made_for), row_limit(band_limit(made_for)) {
  const std::vector<double> exact = make_rows(axis, row_limit);
  rows.assign(exact.begin(), exact.end());
  column_means.resize(static_cast<size_t>(axis.source));
  for (int64_t place = 0; place < axis.target; ++place) {
    const Band at = band(axis, place);
    row_first.push_back(static_cast<int32_t>(at.first));
    row_count.push_back(static_cast<int32_t>(at.end - at.first));
    for (int64_t i = at.first; i < at.end; ++i) {
      column_means[static_cast<size_t>(i)] +=
          exact[static_cast<size_t>(place * row_limit + i - at.first)] / static_cast<double>(axis.target);
    }
  }
  block_limit = 0;
  for (int64_t first = 0; first < axis.target; first += kColumns) {
    const int64_t last = std::min<int64_t>(first + kColumns, axis.target) - 1;
    block_first.push_back(row_first[static_cast<size_t>(first)]);
    block_count.push_back(static_cast<int32_t>(band(axis, last).end) - block_first.back());
    block_limit = std::max<int64_t>(block_limit, block_count.back());
  }
  blocks.resize(block_first.size() * static_cast<size_t>(block_limit * kColumns));
  for (int64_t place = 0; place < axis.target; ++place) {
    const int64_t block = place / kColumns;
    const int64_t skipped = row_first[static_cast<size_t>(place)] - block_first[static_cast<size_t>(block)];
    for (int64_t b = 0; b < row_count[static_cast<size_t>(place)]; ++b) {
      blocks[static_cast<size_t>((block * block_limit + skipped + b) * kColumns + place % kColumns)] =
          rows[static_cast<size_t>(place * row_limit + b)];
    }
  }
}

template <typename A>
AxisView<A> AxisTable<A>::view() const {
  return {axis.source,      axis.target, row_limit,          block_limit,        row_first.data(),
          row_count.data(), rows.data(), block_first.data(), block_count.data(), blocks.data()};
}

template <typename A>
std::shared_ptr<const AxisTable<A>> axis_table(const Axis& axis) {
  constexpr size_t kKept = 64;
  static std::mutex mutex;
  static std::list<std::shared_ptr<const AxisTable<A>>> tables;  // the last one used first
  const auto is_wanted = [&](const std::shared_ptr<const AxisTable<A>>& table) {
    const Axis& known = table->axis;
    return known.source == axis.source && known.target == axis.target && known.sigma == axis.sigma &&
           known.mirror == axis.mirror;
  };
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = std::find_if(tables.begin(), tables.end(), is_wanted);
    if (found != tables.end()) {
      tables.splice(tables.begin(), tables, found);
      return tables.front();
    }
  }
  auto made = std::make_shared<const AxisTable<A>>(axis);  // others need not wait; two may make the same
  const std::lock_guard<std::mutex> lock(mutex);
  tables.push_front(made);
  if (tables.size() > kKept) tables.pop_back();
  return made;
}

template struct AxisTable<float>;
template struct AxisTable<double>;
template std::shared_ptr<const AxisTable<float>> axis_table<float>(const Axis& axis);
template std::shared_ptr<const AxisTable<double>> axis_table<double>(const Axis& axis);

}  // namespace scrd::maps
