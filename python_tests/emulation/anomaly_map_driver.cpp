// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "anomaly_map/anomaly_map_kernels.cuh"
#include "driver.h"

namespace {

using driver::Arguments;
using driver::Array;

/// `distances` holds all scales, `shapes` the height and width of each.
template <typename A>
struct Inputs {
  explicit Inputs(const Arguments& arguments)
      : distances(arguments.array<A>("distances")),
        weights(arguments.has("weights") ? arguments.array<A>("weights") : Array<A>()),
        shapes(arguments.array<int64_t>("shapes")) {
    problem.weights = arguments.has("weights") ? weights.data() : nullptr;
    problem.samples = arguments.integer("samples");
    problem.height = arguments.integer("height");
    problem.width = arguments.integer("width");
    problem.sigma = arguments.number("sigma");
    problem.mirror = arguments.text("border") == "mirror";
    const A* begin = distances.data();
    for (size_t k = 0; k < shapes.size(); k += 2) {
      problem.scales.push_back({begin, shapes[k], shapes[k + 1]});
      begin += problem.samples * shapes[k] * shapes[k + 1];
    }
  }
  Array<A> distances, weights;
  Array<int64_t> shapes;
  scrd::maps::Problem<A> problem;
};

/// Scratch memory of exactly the size asked for.
template <typename A>
Array<A> scratch(const Arguments& arguments, int64_t bytes) {
  return arguments.empty<A>(static_cast<size_t>(bytes) / sizeof(A));
}

/// Gives map, mean, max and top in one array; without `shares` only the mean.
template <typename A>
void forward(const Arguments& arguments) {
  const Inputs<A> inputs(arguments);
  const auto& problem = inputs.problem;
  const bool with_map = arguments.has("shares");
  const Array<double> shares = with_map ? arguments.array<double>("shares") : Array<double>();
  const size_t samples = static_cast<size_t>(problem.samples), count = with_map ? shares.size() : 0;
  const Array<A> map = arguments.empty<A>(
                     with_map ? samples * static_cast<size_t>(problem.height * problem.width) : 0),
                 mean = arguments.empty<A>(samples), max = arguments.empty<A>(with_map ? samples : 0),
                 top = arguments.empty<A>(samples * count);
  const Array<A> memory = scratch<A>(arguments, scrd::maps::scratch_bytes(problem, with_map));
  const scrd::maps::Outputs<A> outputs{with_map ? map.data() : nullptr,
                                       mean.data(),
                                       max.data(),
                                       top.data(),
                                       {shares.data(), shares.data() + count}};
  scrd::maps::launch_anomaly_map(problem, outputs, memory.data(), nullptr);
  const Array<A> all = arguments.empty<A>(map.size() + mean.size() + max.size() + top.size());
  A* next = all.data();
  for (const Array<A>* part : {&map, &mean, &max, &top}) {
    next = std::copy(part->data(), part->data() + part->size(), next);
  }
  arguments.give(all);
}

/// Gives the gradients of all distances and of the weights in one array.
template <typename A>
void backward(const Arguments& arguments) {
  const Inputs<A> inputs(arguments);
  const auto& problem = inputs.problem;
  const bool with_map = arguments.has("grad_map");
  const Array<A> grad_map = with_map ? arguments.array<A>("grad_map") : Array<A>(),
                 grad_mean = arguments.array<A>("grad_mean");
  const Array<A> out =
      arguments.empty<A>(inputs.distances.size() + (problem.weights != nullptr ? inputs.weights.size() : 0));
  scrd::maps::Gradients<A> gradients{with_map ? grad_map.data() : nullptr, grad_mean.data(), {}, nullptr};
  A* next = out.data();
  for (const auto& scale : problem.scales) {
    gradients.to_distances.push_back(next);
    next += problem.samples * scale.height * scale.width;
  }
  if (problem.weights != nullptr) gradients.to_weights = next;
  const Array<A> memory = scratch<A>(arguments, scrd::maps::gradient_scratch_bytes(problem, with_map));
  scrd::maps::launch_anomaly_map_gradients(problem, gradients, memory.data(), nullptr);
  arguments.give(out);
}

template <typename A>
void run_with(const Arguments& arguments) {
  arguments.has("grad_mean") ? backward<A>(arguments) : forward<A>(arguments);
}

}  // namespace

void driver::run(const Arguments& arguments) {
  arguments.text("dtype") == "float64" ? run_with<double>(arguments) : run_with<float>(arguments);
}
