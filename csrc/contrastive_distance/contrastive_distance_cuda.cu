// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/cuda.h"
#include "contrastive_distance/contrastive_distance_binding.h"
#include "contrastive_distance/contrastive_distance_kernels.cuh"

namespace scrd::contrastive {
namespace {

/// Pointers of the scales of one type, or of all.
template <typename A>
struct Group {
  std::vector<Maps> maps;
  std::vector<int64_t> numbers;  // among all scales
  std::vector<A*> partial;
  std::vector<void*> to_clean, to_noisy, to_student;

  int64_t count() const { return static_cast<int64_t>(maps.size()); }
  Pointers<A> pointers() const {
    const auto list = [](const std::vector<void*>& of) { return of.empty() ? nullptr : of.data(); };
    return {nullptr, list(to_clean), list(to_noisy), list(to_student)};
  }
};

/// The scales of that type; `add(group, k)` puts into the group what belongs to scale k.
template <typename A, typename Add>
Group<A> group_of(const Inputs& inputs, const Add& add, std::optional<ScalarType> type = std::nullopt) {
  Group<A> group;
  for (size_t k = 0; k < inputs.scales.size(); ++k) {
    if (type && inputs.type(k) != *type) continue;
    group.maps.push_back(inputs.scales[k]);
    group.numbers.push_back(static_cast<int64_t>(k));
    add(group, k);
  }
  return group;
}

/// Calls launch(T, group) for the scales of each type that is summed in A.
template <typename A, typename Add, typename Launch>
void for_types(const Inputs& inputs, const Add& add, const Launch& launch) {
  const auto run = [&](auto of_type, ScalarType type) {
    const Group<A> group = group_of<A>(inputs, add, type);
    if (group.count() > 0) launch(of_type, group);
  };
  if constexpr (sizeof(A) == sizeof(double)) {
    run(double{}, ScalarType::Double);
  } else {
    run(float{}, ScalarType::Float);
    run(__half{}, ScalarType::Half);
    run(__nv_bfloat16{}, ScalarType::BFloat16);
  }
}

void check_types(const Inputs& inputs) {
  for (size_t k = 0; k < inputs.scales.size(); ++k) {
    const ScalarType type = inputs.type(k);
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                        type == ScalarType::BFloat16,
                    "maps must be float32, float16, bfloat16 or float64");
    STD_TORCH_CHECK(inputs.scale(k).student().device() == inputs.scale(0).student().device(),
                    "maps must be on one device");
  }
}

template <typename A>
void fill(const Inputs& inputs, double eps, const CudaLaunch& cuda, Tensor& d_clean, Tensor& d_noisy,
          Tensor& dots) {
  int64_t chunks = 0;
  std::vector<int64_t> first;
  for (const Maps& maps : inputs.scales) {
    first.push_back(chunks);
    chunks += maps.samples * maps.chunks();
  }
  Tensor partial = inputs.allocate({chunks * kDots});
  A* sums = partial.mutable_data_ptr<A>();
  const auto add = [&](Group<A>& group, size_t k) { group.partial.push_back(sums + first[k] * kDots); };
  for_types<A>(inputs, add, [&](auto of_type, const Group<A>& group) {
    launch_sums<decltype(of_type), A>(group.maps.data(), group.numbers.data(), group.count(),
                                      group.partial.data(), cuda.stream());
  });
  const Numbers<A, A> out{d_clean.mutable_data_ptr<A>(),
                          inputs.has_noisy() ? d_noisy.mutable_data_ptr<A>() : nullptr,
                          dots.mutable_data_ptr<A>(), inputs.count()};
  const Group<A> all = group_of<A>(inputs, add);
  launch_finish<A>(all.maps.data(), all.numbers.data(), all.count(), all.partial.data(), eps, out,
                   cuda.stream());
}

std::tuple<Tensor, Tensor, Tensor> contrastive_distance(const std::vector<Tensor>& clean,
                                                        const std::vector<Tensor>& noisy,
                                                        const std::vector<Tensor>& student, double eps) {
  const Inputs inputs(clean, noisy, student);
  check_types(inputs);
  const CudaLaunch cuda(student[0]);
  Tensor d_clean = inputs.allocate_distances(), d_noisy = inputs.allocate_distances(inputs.has_noisy());
  Tensor dots = inputs.allocate({inputs.samples(), inputs.count(), kDots});
  if (inputs.accumulator() == ScalarType::Double) {
    fill<double>(inputs, eps, cuda, d_clean, d_noisy, dots);
  } else {
    fill<float>(inputs, eps, cuda, d_clean, d_noisy, dots);
  }
  cuda.check();
  return {d_clean, d_noisy, dots};
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> contrastive_distance_backward(
    const Tensor& grad_clean, const Tensor& grad_noisy, const Tensor& dots, const std::vector<Tensor>& clean,
    const std::vector<Tensor>& noisy, const std::vector<Tensor>& student, double eps, bool teacher_grad) {
  const Inputs inputs(clean, noisy, student);
  check_types(inputs);
  const CudaLaunch cuda(student[0]);
  const int64_t n = inputs.samples(), count = inputs.count();
  const Tensor from_clean = inputs.checked(grad_clean, {n, count}),
               sums = inputs.checked(dots, {n, count, kDots});
  const Tensor from_noisy = inputs.has_noisy() ? inputs.checked(grad_noisy, {n, count}) : from_clean;
  std::vector<Tensor> to_clean, to_noisy, to_student;
  for (size_t k = 0; k < inputs.scales.size(); ++k) {
    to_student.push_back(inputs.scale(k).allocate_gradient());
    if (teacher_grad) to_clean.push_back(inputs.scale(k).allocate_gradient());
    if (teacher_grad && inputs.has_noisy()) to_noisy.push_back(inputs.scale(k).allocate_gradient());
  }
  const auto write = [&](auto of_accumulator) {
    using A = decltype(of_accumulator);
    const Numbers<const A, const A> from{from_clean.const_data_ptr<A>(),
                                         inputs.has_noisy() ? from_noisy.const_data_ptr<A>() : nullptr,
                                         sums.const_data_ptr<A>(), count};
    const auto add = [&](Group<A>& group, size_t k) {
      group.to_student.push_back(to_student[k].mutable_data_ptr());
      if (!to_clean.empty()) group.to_clean.push_back(to_clean[k].mutable_data_ptr());
      if (!to_noisy.empty()) group.to_noisy.push_back(to_noisy[k].mutable_data_ptr());
    };
    for_types<A>(inputs, add, [&](auto of_type, const Group<A>& group) {
      launch_gradients<decltype(of_type), A>(group.maps.data(), group.numbers.data(), group.count(),
                                             group.pointers(), eps, from, cuda.stream());
    });
  };
  inputs.accumulator() == ScalarType::Double ? write(double{}) : write(float{});
  cuda.check();
  return {to_clean, to_noisy, to_student};
}

}  // namespace
}  // namespace scrd::contrastive

STABLE_TORCH_LIBRARY_IMPL(scrd_fast, CUDA, m) {
  m.impl("contrastive_distance", TORCH_BOX(&scrd::contrastive::contrastive_distance));
  m.impl("contrastive_distance_backward", TORCH_BOX(&scrd::contrastive::contrastive_distance_backward));
}
