// SPDX-License-Identifier: Apache-2.0
#include "anomaly_map/anomaly_map_cpu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <tuple>

#include "anomaly_map/anomaly_map_binding.h"
#include "anomaly_map/axis_table.h"
#include "common/isa.h"
#include "common/parallel.h"

namespace scrd::maps {
namespace {

template <typename A>
const TypedKernels<A>& kernels_for() {
  const CpuKernels& kernels = SCRD_CHOOSE_ISA(kernels);
  if constexpr (sizeof(A) == sizeof(float)) {
    return kernels.of_float;
  } else {
    return kernels.of_double;
  }
}

/// All scales with their tables.
template <typename A>
class Scales {
 public:
  explicit Scales(const Task& task) : task_(task) {
    for (int64_t k = 0; k < task.scales(); ++k) {
      rows_.push_back(axis_table<A>(task.rows(k)));
      columns_.push_back(axis_table<A>(task.columns(k)));
    }
  }

  std::vector<ScaleView<A>> of_sample(int64_t n) const {
    std::vector<ScaleView<A>> views;
    for (size_t k = 0; k < rows_.size(); ++k) {
      views.push_back({map(n, k), weight(n, k), rows_[k]->view(), columns_[k]->view(), nullptr, 0});
    }
    return views;
  }

  /// sum_k w_k a_k^T M_k b_k with the columns' means a_k, b_k: the mean of the map, without one.
  double mean(int64_t n) const {
    double total = 0;
    for (size_t k = 0; k < rows_.size(); ++k) {
      const std::vector<double>&a = rows_[k]->column_means, &b = columns_[k]->column_means;
      const A* entry = map(n, k);
      double scale = 0;
      for (const double row : a) {
        double sum = 0;
        for (const double column : b) sum += column * static_cast<double>(*entry++);
        scale += row * sum;
      }
      total += static_cast<double>(weight(n, k)) * scale;
    }
    return total;
  }

 private:
  const A* map(int64_t n, size_t k) const {
    const Tensor& maps = task_.distances[k];
    return maps.const_data_ptr<A>() + n * maps.size(1) * maps.size(2);
  }
  A weight(int64_t n, size_t k) const {
    if (!task_.weights) return 1;
    return task_.weights->const_data_ptr<A>()[n * task_.scales() + static_cast<int64_t>(k)];
  }

  const Task& task_;
  std::vector<std::shared_ptr<const AxisTable<A>>> rows_, columns_;
};

template <typename A>
void fill_maps(const Task& task, const Scales<A>& scales, A* out) {
  constexpr int64_t kStrip = 64;               // rows of a map that are one thread's
  constexpr int64_t kNanosecondsPerPixel = 1;  // measured: 0.8 on one core with AVX2
  const TypedKernels<A>& kernels = kernels_for<A>();
  const int64_t strips = (task.height + kStrip - 1) / kStrip;
  parallel_for(task.samples() * strips, kNanosecondsPerPixel * kStrip * task.width, [&](int64_t index) {
    const int64_t n = index / strips, begin = index % strips * kStrip;
    const int64_t end = std::min(begin + kStrip, task.height);
    std::vector<ScaleView<A>> views = scales.of_sample(n);
    const int count = static_cast<int>(views.size());
    const std::unique_ptr<A[]> scratch(
        new A[static_cast<size_t>(scratch_size(views.data(), count, begin, end))]);
    kernels.strip(views.data(), count, begin, end, scratch.get(),
                  out + (n * task.height + begin) * task.width);
  });
}

/// The scores of one image that need its map.
template <typename A>
class Scorer {
 public:
  Scorer(const A* pixels, int64_t count) : pixels_(pixels), count_(count) {
    unordered_ = kernels_.range(pixels, count, &least_, &largest_);
    if (unordered_) return;
    using Key = typename KeyOf<A>::Type;
    bins_ = {key_of(least_), 0};
    while (static_cast<Key>(key_of(largest_) - bins_.low) >> bins_.shift >= kBins) ++bins_.shift;
    last_ = static_cast<int>((key_of(largest_) - bins_.low) >> bins_.shift);
  }

  A largest() const { return unordered_ ? std::numeric_limits<A>::quiet_NaN() : largest_; }

  /// The mean of the largest `share` of all pixels: whole bins are summed, the one that is cut is sorted.
  A mean_of_largest(double share) {
    if (unordered_) return std::numeric_limits<A>::quiet_NaN();
    if (counts_.empty()) {
      counts_.resize(kBins);
      kernels_.histogram(pixels_, count_, bins_, counts_.data());
    }
    const int64_t wanted = count_of(share, count_);
    int bin = last_;
    for (int64_t seen = counts_[static_cast<size_t>(bin)]; seen < wanted;
         seen += counts_[static_cast<size_t>(bin)])
      --bin;
    const bool top_bin = bin == last_;
    inside_.resize(std::max(inside_.size(), size_t{counts_[static_cast<size_t>(bin)]}));
    const Split<A> found = kernels_.split(pixels_, count_, edge(bin), top_bin ? largest_ : edge(bin + 1),
                                          top_bin, inside_.data());
    const int64_t rest = wanted - found.above;  // at least one
    std::nth_element(inside_.begin(), inside_.begin() + rest - 1, inside_.begin() + found.inside,
                     std::greater<A>());
    double sum = found.sum;
    for (int64_t i = 0; i < rest; ++i) sum += static_cast<double>(inside_[static_cast<size_t>(i)]);
    return static_cast<A>(sum / static_cast<double>(wanted));
  }

 private:
  /// The least value of a bin.
  A edge(int bin) const {
    using Key = typename KeyOf<A>::Type;
    return value_of<A>(bins_.low + (static_cast<Key>(bin) << bins_.shift));
  }

  const TypedKernels<A>& kernels_ = kernels_for<A>();
  const A* pixels_;
  int64_t count_;
  std::vector<uint32_t> counts_;
  std::vector<A> inside_;
  Bins<A> bins_{};
  A least_{}, largest_{};
  bool unordered_ = false;
  int last_ = 0;
};

template <typename A>
void run(const Task& task, const std::vector<double>& top, const Results& results) {
  const Scales<A> scales(task);
  A* mean = results.mean.mutable_data_ptr<A>();
  parallel_for(task.samples(), 10000, [&](int64_t n) { mean[n] = static_cast<A>(scales.mean(n)); });
  if (results.map.numel() == 0) return;
  A* map = results.map.mutable_data_ptr<A>();
  fill_maps(task, scales, map);
  A *max = results.max.mutable_data_ptr<A>(), *means = results.top.mutable_data_ptr<A>();
  const int64_t pixels = task.height * task.width, shares = static_cast<int64_t>(top.size());
  parallel_for(task.samples(), pixels, [&](int64_t n) {
    Scorer<A> scorer(map + n * pixels, pixels);
    max[n] = scorer.largest();
    for (int64_t i = 0; i < shares; ++i)
      means[n * shares + i] = scorer.mean_of_largest(top[static_cast<size_t>(i)]);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> anomaly_map(const std::vector<Tensor>& distances,
                                                       const std::optional<Tensor>& weights,
                                                       const std::vector<int64_t>& size, double sigma,
                                                       const std::string& border,
                                                       const std::vector<double>& top, bool return_map) {
  const Task task(distances, weights, size, sigma, border);
  const Results results(task, top, return_map);
  if (task.type() == ScalarType::Double) {
    run<double>(task, top, results);
  } else {
    run<float>(task, top, results);
  }
  return {results.map, results.mean, results.max, results.top};
}

}  // namespace
}  // namespace scrd::maps

STABLE_TORCH_LIBRARY_IMPL(scrd_fast, CPU, m) { m.impl("anomaly_map", TORCH_BOX(&scrd::maps::anomaly_map)); }
