// SPDX-License-Identifier: Apache-2.0
// The gradient of anomaly_map with respect to the distances, w_k A_k^T G B_k, and to the weights: small work
// beside the features' gradient, in plain loops.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "anomaly_map/anomaly_map_binding.h"
#include "anomaly_map/axis_table.h"
#include "common/parallel.h"

namespace scrd::maps {
namespace {

/// out [rows.source, columns.source] += A^T G B.
template <typename A>
void project(const A* grad, const AxisTable<A>& rows, const AxisTable<A>& columns, A* out) {
  const int64_t height = rows.axis.target, width = columns.axis.target;
  std::vector<A> half(static_cast<size_t>(rows.axis.source * width));  // A^T G
  for (int64_t h = 0; h < height; ++h) {
    for (int64_t b = 0; b < rows.row_count[static_cast<size_t>(h)]; ++b) {
      const A entry = rows.rows[static_cast<size_t>(h * rows.row_limit + b)];
      A* to = half.data() + (rows.row_first[static_cast<size_t>(h)] + b) * width;
      for (int64_t w = 0; w < width; ++w) to[w] += entry * grad[h * width + w];
    }
  }
  for (int64_t i = 0; i < rows.axis.source; ++i) {
    for (int64_t w = 0; w < width; ++w) {
      const A value = half[static_cast<size_t>(i * width + w)];
      const A* entries = columns.rows.data() + w * columns.row_limit;
      A* to = out + i * columns.axis.source + columns.row_first[static_cast<size_t>(w)];
      for (int64_t b = 0; b < columns.row_count[static_cast<size_t>(w)]; ++b) to[b] += value * entries[b];
    }
  }
}

template <typename A>
struct Sample {
  const A *grad_map, *distance;  // grad_map may be null
  A grad_mean;
  const A* weight;  // or null
  A *to_distance, *to_weight;
};

template <typename A>
void run_sample(const Sample<A>& at, const AxisTable<A>& rows, const AxisTable<A>& columns) {
  const int64_t source = rows.axis.source * columns.axis.source;
  for (int64_t i = 0; i < source; ++i) {
    const double mean = rows.column_means[static_cast<size_t>(i / columns.axis.source)] *
                        columns.column_means[static_cast<size_t>(i % columns.axis.source)];
    at.to_distance[i] = at.grad_mean * static_cast<A>(mean);
  }
  if (at.grad_map != nullptr) project(at.grad_map, rows, columns, at.to_distance);
  if (at.weight == nullptr) return;
  double product = 0;
  for (int64_t i = 0; i < source; ++i) product += static_cast<double>(at.to_distance[i] * at.distance[i]);
  *at.to_weight = static_cast<A>(product);
  for (int64_t i = 0; i < source; ++i) at.to_distance[i] *= *at.weight;
}

template <typename A>
void run(const Task& task, const std::optional<Tensor>& grad_map, const Tensor& grad_mean,
         const std::vector<Tensor>& to_distances, const Tensor& to_weights) {
  const int64_t pixels = task.height * task.width, scales = task.scales();
  std::vector<std::shared_ptr<const AxisTable<A>>> rows, columns;
  for (int64_t k = 0; k < scales; ++k) {
    rows.push_back(axis_table<A>(task.rows(k)));
    columns.push_back(axis_table<A>(task.columns(k)));
  }
  const A* maps = grad_map ? grad_map->const_data_ptr<A>() : nullptr;
  const A *means = grad_mean.const_data_ptr<A>(),
          *weights = task.weights ? task.weights->const_data_ptr<A>() : nullptr;
  A* into_weights = task.weights ? to_weights.mutable_data_ptr<A>() : nullptr;
  parallel_for(task.samples() * scales, 2 * pixels, [&](int64_t index) {
    const int64_t n = index / scales;
    const size_t k = static_cast<size_t>(index % scales);
    const int64_t place = n * rows[k]->axis.source * columns[k]->axis.source;
    run_sample<A>(
        {maps == nullptr ? nullptr : maps + n * pixels, task.distances[k].const_data_ptr<A>() + place,
         means[n], weights == nullptr ? nullptr : weights + index,
         to_distances[k].mutable_data_ptr<A>() + place,
         into_weights == nullptr ? nullptr : into_weights + index},
        *rows[k], *columns[k]);
  });
}

std::tuple<std::vector<Tensor>, Tensor> anomaly_map_backward(const std::optional<Tensor>& grad_map,
                                                             const Tensor& grad_mean,
                                                             const std::vector<Tensor>& distances,
                                                             const std::optional<Tensor>& weights,
                                                             const std::vector<int64_t>& size, double sigma,
                                                             const std::string& border) {
  const Task task(distances, weights, size, sigma, border);
  const Grads grads(task, grad_map, grad_mean);
  std::vector<Tensor> to_distances;
  for (const Tensor& map : task.distances) to_distances.push_back(torch::stable::empty_like(map));
  const Tensor to_weights = task.weights ? torch::stable::empty_like(*task.weights)
                                         : torch::stable::new_empty(task.distances[0], {0});
  if (task.type() == ScalarType::Double) {
    run<double>(task, grads.map, grads.mean, to_distances, to_weights);
  } else {
    run<float>(task, grads.map, grads.mean, to_distances, to_weights);
  }
  return {to_distances, to_weights};
}

}  // namespace
}  // namespace scrd::maps

STABLE_TORCH_LIBRARY_IMPL(scrd_fast, CPU, m) {
  m.impl("anomaly_map_backward", TORCH_BOX(&scrd::maps::anomaly_map_backward));
}
