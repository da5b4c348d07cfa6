// SPDX-License-Identifier: Apache-2.0
// What the CPU and the CUDA binding of anomaly_map share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <vector>

#include "anomaly_map/anomaly_map.h"

namespace scrd::maps {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/// The operator's arguments, dense. Users' mistakes were found in Python; the checks protect memory.
struct Task {
  std::vector<Tensor> distances;  // [N, H_k, W_k]
  std::optional<Tensor> weights;  // [N, K]
  int64_t height, width;
  double sigma;
  bool mirror;

  Task(const std::vector<Tensor>& maps, const std::optional<Tensor>& scale_weights,
       const std::vector<int64_t>& size, double blur, const std::string& border)
      : height(size.size() == 2 ? size[0] : 0), width(size.size() == 2 ? size[1] : 0), sigma(blur) {
    STD_TORCH_CHECK(!maps.empty(), "distances must hold at least one map");
    STD_TORCH_CHECK(height > 0 && width > 0, "size must be two positive numbers");
    STD_TORCH_CHECK(sigma >= 0 && sigma < 16384.0, "sigma must be at least 0 and below 2^14");
    STD_TORCH_CHECK(border == "reflect" || border == "mirror", "border must be reflect or mirror");
    mirror = border == "mirror";
    for (const Tensor& map : maps) distances.push_back(checked(map, maps[0]));
    if (scale_weights) {
      const Tensor& given = *scale_weights;
      STD_TORCH_CHECK(given.dim() == 2 && given.size(0) == samples() && given.size(1) == scales() &&
                          given.scalar_type() == type() && given.device() == maps[0].device(),
                      "weights must be [N, K], of the distances' dtype and device");
      weights = torch::stable::contiguous(given);
    }
  }

  int64_t samples() const { return distances[0].size(0); }
  int64_t scales() const { return static_cast<int64_t>(distances.size()); }
  ScalarType type() const { return distances[0].scalar_type(); }
  Axis rows(int64_t k) const { return {distances[static_cast<size_t>(k)].size(1), height, sigma, mirror}; }
  Axis columns(int64_t k) const { return {distances[static_cast<size_t>(k)].size(2), width, sigma, mirror}; }

 private:
  static Tensor checked(const Tensor& map, const Tensor& first) {
    STD_TORCH_CHECK(map.dim() == 3 && map.size(1) > 0 && map.size(2) > 0, "distances must be [N, H, W]");
    STD_TORCH_CHECK(map.size(0) == first.size(0) && map.device() == first.device() &&
                        map.scalar_type() == first.scalar_type(),
                    "distances must have one batch size, device and dtype");
    STD_TORCH_CHECK(map.scalar_type() == ScalarType::Float || map.scalar_type() == ScalarType::Double,
                    "distances must be float32 or float64");
    return torch::stable::contiguous(map);
  }
};

/// The gradients that come from behind, dense.
struct Grads {
  std::optional<Tensor> map;  // [N, 1, H, W]
  Tensor mean;                // [N]

  Grads(const Task& task, const std::optional<Tensor>& of_map, const Tensor& of_mean)
      : mean(torch::stable::contiguous(of_mean)) {
    STD_TORCH_CHECK(mean.dim() == 1 && mean.size(0) == task.samples() && mean.scalar_type() == task.type() &&
                        mean.device() == task.distances[0].device(),
                    "grad_mean must be as the mean");
    if (!of_map) return;
    map = torch::stable::contiguous(*of_map);
    STD_TORCH_CHECK(map->dim() == 4 && map->size(0) == task.samples() && map->size(1) == 1 &&
                        map->size(2) == task.height && map->size(3) == task.width &&
                        map->scalar_type() == task.type() && map->device() == mean.device(),
                    "grad_map must be as the map");
  }
};

/// The four results, not yet filled. What was not asked for is empty.
struct Results {
  Tensor map, mean, max, top;

  Results(const Task& task, const std::vector<double>& shares, bool return_map)
      : map(make(task, return_map ? std::vector<int64_t>{task.samples(), 1, task.height, task.width}
                                  : std::vector<int64_t>{0})),
        mean(make(task, {task.samples()})),
        max(make(task, {return_map ? task.samples() : 0})),
        top(make(task, {task.samples(), static_cast<int64_t>(shares.size())})) {
    STD_TORCH_CHECK(return_map || shares.empty(), "top needs return_map");
    for (const double share : shares) {
      STD_TORCH_CHECK(share > 0 && share <= 1, "top must be above 0 and at most 1");
    }
  }

 private:
  static Tensor make(const Task& task, const std::vector<int64_t>& shape) {
    return torch::stable::new_empty(task.distances[0], shape);
  }
};

}  // namespace scrd::maps
