// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "anomaly_map/anomaly_map_binding.h"
#include "anomaly_map/anomaly_map_kernels.cuh"
#include "common/cuda.h"

namespace scrd::maps {
namespace {

/// Kernels count pixels in 32 bits, and a step beyond the last one.
void check_sizes(const Task& task) {
  constexpr int64_t kMost = 0x7fff0000;
  STD_TORCH_CHECK(task.height <= kMost / task.width, "size must have fewer than 2^31 - 2^16 pixels");
  for (const Tensor& map : task.distances) {
    STD_TORCH_CHECK(map.size(1) <= kMost / map.size(2), "distances must have fewer than 2^31 - 2^16 pixels");
  }
}

template <typename A>
Problem<A> problem_of(const Task& task) {
  Problem<A> problem{{},
                     task.weights ? task.weights->const_data_ptr<A>() : nullptr,
                     task.samples(),
                     task.height,
                     task.width,
                     task.sigma,
                     task.mirror};
  for (const Tensor& map : task.distances) {
    problem.scales.push_back({map.const_data_ptr<A>(), map.size(1), map.size(2)});
  }
  return problem;
}

/// Memory of torch's allocator, which may be given back while kernels of this stream still use it.
Tensor make_scratch(const Task& task, int64_t bytes) {
  return torch::stable::new_empty(task.distances[0], {bytes}, ScalarType::Byte);
}

/// Memory of a tensor that was asked for, else null.
template <typename A>
A* data_of(const Tensor& tensor) {
  return tensor.numel() > 0 ? tensor.mutable_data_ptr<A>() : nullptr;
}

template <typename A>
void run(const Task& task, const Results& results, const std::vector<double>& shares, bool return_map,
         cudaStream_t stream) {
  const Problem<A> problem = problem_of<A>(task);
  const Outputs<A> outputs{return_map ? data_of<A>(results.map) : nullptr, data_of<A>(results.mean),
                           data_of<A>(results.max), data_of<A>(results.top), shares};
  const Tensor scratch = make_scratch(task, scratch_bytes(problem, return_map));
  launch_anomaly_map(problem, outputs, scratch.mutable_data_ptr(), stream);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> anomaly_map(const std::vector<Tensor>& distances,
                                                       const std::optional<Tensor>& weights,
                                                       const std::vector<int64_t>& size, double sigma,
                                                       const std::string& border,
                                                       const std::vector<double>& top, bool return_map) {
  const Task task(distances, weights, size, sigma, border);
  const CudaLaunch cuda(task.distances[0]);
  check_sizes(task);
  const Results results(task, top, return_map);
  if (task.samples() > 0) {
    const auto run_type = task.type() == ScalarType::Double ? run<double> : run<float>;
    run_type(task, results, top, return_map, cuda.stream());
    cuda.check();
  }
  return {results.map, results.mean, results.max, results.top};
}

template <typename A>
void run_backward(const Task& task, const std::optional<Tensor>& grad_map, const Tensor& grad_mean,
                  const std::vector<Tensor>& to_distances, const Tensor& to_weights, cudaStream_t stream) {
  const Problem<A> problem = problem_of<A>(task);
  Gradients<A> gradients{grad_map ? grad_map->const_data_ptr<A>() : nullptr,
                         grad_mean.const_data_ptr<A>(),
                         {},
                         data_of<A>(to_weights)};
  for (const Tensor& scale : to_distances) gradients.to_distances.push_back(scale.mutable_data_ptr<A>());
  const Tensor scratch = make_scratch(task, gradient_scratch_bytes(problem, grad_map.has_value()));
  launch_anomaly_map_gradients(problem, gradients, scratch.mutable_data_ptr(), stream);
}

std::tuple<std::vector<Tensor>, Tensor> anomaly_map_backward(const std::optional<Tensor>& grad_map,
                                                             const Tensor& grad_mean,
                                                             const std::vector<Tensor>& distances,
                                                             const std::optional<Tensor>& weights,
                                                             const std::vector<int64_t>& size, double sigma,
                                                             const std::string& border) {
  const CudaLaunch cuda(grad_mean);
  const Task task(distances, weights, size, sigma, border);
  check_sizes(task);
  const Grads grads(task, grad_map, grad_mean);
  std::vector<Tensor> to_distances;
  for (const Tensor& scale : task.distances) {
    to_distances.push_back(torch::stable::new_empty(scale, {scale.size(0), scale.size(1), scale.size(2)}));
  }
  const std::vector<int64_t> shape =
      weights ? std::vector<int64_t>{task.samples(), task.scales()} : std::vector<int64_t>{0};
  const Tensor to_weights = torch::stable::new_empty(task.distances[0], shape);
  if (task.samples() > 0) {
    const auto run_type = task.type() == ScalarType::Double ? run_backward<double> : run_backward<float>;
    run_type(task, grads.map, grads.mean, to_distances, to_weights, cuda.stream());
    cuda.check();
  }
  return {to_distances, to_weights};
}

}  // namespace
}  // namespace scrd::maps

STABLE_TORCH_LIBRARY_IMPL(scrd_fast, CUDA, m) {
  m.impl("anomaly_map", TORCH_BOX(&scrd::maps::anomaly_map));
  m.impl("anomaly_map_backward", TORCH_BOX(&scrd::maps::anomaly_map_backward));
}
