// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/cuda.h"
#include "cosine_distances/cosine_distances_binding.h"
#include "cosine_distances/cosine_distances_kernels.cuh"

namespace scrd::cosine {
namespace {

void check_map(const Pair& pair, const Tensor& first) {
  const Maps maps = pair.maps();
  STD_TORCH_CHECK(pair.teacher().device() == first.device(), "all features must be on one device");
  STD_TORCH_CHECK(maps.pixels() > 0 && maps.channels > 0, "features must have channels and pixels");
  STD_TORCH_CHECK(maps.pixels() < 0x80000000 && maps.channels < 0x40000000,
                  "a map must have fewer than 2^31 pixels and 2^30 channels");
}

/// As the features lie.
Tensor allocate_gradient(const Tensor& like, bool rows) {
  return torch::stable::empty(like.sizes(), like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              rows ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

/// Calls launch(T, A, scales): scales of several types are as many launches.
template <typename T, typename A, typename Launch>
void run_type(ScalarType type, const std::vector<Pair>& pairs, const Launch& launch) {
  std::vector<size_t> scales;
  for (size_t k = 0; k < pairs.size(); ++k) {
    if (pairs[k].type() == type) scales.push_back(k);
  }
  if (!scales.empty()) launch(T{}, A{}, scales);
}

template <typename Launch>
void run_types(const std::vector<Pair>& pairs, const Launch& launch) {
  for (const Pair& pair : pairs) {
    const ScalarType type = pair.type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                        type == ScalarType::BFloat16,
                    "features must be float32, float16, bfloat16 or float64");
  }
  run_type<float, float>(ScalarType::Float, pairs, launch);
  run_type<double, double>(ScalarType::Double, pairs, launch);
  run_type<__half, float>(ScalarType::Half, pairs, launch);
  run_type<__nv_bfloat16, float>(ScalarType::BFloat16, pairs, launch);
}

std::vector<Maps> maps_of(const std::vector<Pair>& pairs, const std::vector<size_t>& scales) {
  std::vector<Maps> maps;
  for (const size_t k : scales) maps.push_back(pairs[k].maps());
  return maps;
}

std::vector<Tensor> cosine_distances(const std::vector<Tensor>& teacher, const std::vector<Tensor>& student,
                                     double eps) {
  check_lengths(teacher, student);
  const CudaLaunch cuda(teacher[0]);
  std::vector<Pair> pairs;
  std::vector<Tensor> results;
  for (size_t k = 0; k < teacher.size(); ++k) {
    pairs.emplace_back(teacher[k], student[k]);
    check_map(pairs[k], teacher[0]);
    results.push_back(pairs[k].allocate());
  }
  run_types(pairs, [&](auto of_type, auto accumulator, const std::vector<size_t>& scales) {
    using T = decltype(of_type);
    using A = decltype(accumulator);
    const std::vector<Maps> maps = maps_of(pairs, scales);
    std::vector<A*> out;
    for (const size_t k : scales) out.push_back(results[k].mutable_data_ptr<A>());
    launch_distances<T, A>(maps.data(), static_cast<int64_t>(maps.size()), out.data(), eps, cuda.stream());
  });
  cuda.check();
  return results;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> cosine_distances_backward(
    const std::vector<Tensor>& grads, const std::vector<Tensor>& teacher, const std::vector<Tensor>& student,
    double eps, bool teacher_grad) {
  check_lengths(teacher, student);
  check_lengths(teacher, grads);
  const CudaLaunch cuda(teacher[0]);
  std::vector<Pair> pairs;
  std::vector<Tensor> dense_grads, to_teacher, to_student;
  for (size_t k = 0; k < teacher.size(); ++k) {
    pairs.push_back(Pair::dense(teacher[k], student[k]));
    check_map(pairs[k], teacher[0]);
    dense_grads.push_back(pairs[k].checked_grad(grads[k]));
    const bool rows = pairs[k].maps().rows;
    to_student.push_back(allocate_gradient(pairs[k].student(), rows));
    if (teacher_grad) to_teacher.push_back(allocate_gradient(pairs[k].teacher(), rows));
  }
  run_types(pairs, [&](auto of_type, auto accumulator, const std::vector<size_t>& scales) {
    using T = decltype(of_type);
    using A = decltype(accumulator);
    const std::vector<Maps> maps = maps_of(pairs, scales);
    std::vector<const A*> behind;
    std::vector<void*> teachers, students;
    for (const size_t k : scales) {
      behind.push_back(dense_grads[k].const_data_ptr<A>());
      students.push_back(to_student[k].mutable_data_ptr());
      if (teacher_grad) teachers.push_back(to_teacher[k].mutable_data_ptr());
    }
    launch_gradients<T, A>(maps.data(), static_cast<int64_t>(maps.size()),
                           {behind.data(), teacher_grad ? teachers.data() : nullptr, students.data()}, eps,
                           cuda.stream());
  });
  cuda.check();
  return {to_teacher, to_student};
}

}  // namespace
}  // namespace scrd::cosine

STABLE_TORCH_LIBRARY_IMPL(scrd_fast, CUDA, m) {
  m.impl("cosine_distances", TORCH_BOX(&scrd::cosine::cosine_distances));
  m.impl("cosine_distances_backward", TORCH_BOX(&scrd::cosine::cosine_distances_backward));
}
