// SPDX-License-Identifier: Apache-2.0
#include "contrastive_distance/contrastive_distance_cpu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "common/isa.h"
#include "common/parallel.h"
#include "contrastive_distance/contrastive_distance_binding.h"

namespace scrd::contrastive {
namespace {

const TypedKernels& kernels_for(ScalarType type) {
  const CpuKernels& kernels = SCRD_CHOOSE_ISA(kernels);
  switch (type) {
    case ScalarType::Float:
      return kernels.of_float;
    case ScalarType::Double:
      return kernels.of_double;
    case ScalarType::Half:
      return kernels.of_half;
    case ScalarType::BFloat16:
      return kernels.of_bfloat16;
    default:
      STD_TORCH_CHECK(false, "maps must be float32, float16, bfloat16 or float64");
  }
}

/// Calls body(k, run, number) for every run of every sample and scale, a sample's one after the other;
/// `number` counts them.
template <typename Body>
void for_each_run(const Inputs& inputs, const Body& body) {
  constexpr int64_t kNanosecondsPerRun = kChunk / 2;
  std::vector<int64_t> first_run{0};
  for (const Maps& maps : inputs.scales) first_run.push_back(first_run.back() + maps.chunks());
  const int64_t runs = first_run.back();
  parallel_for(inputs.samples() * runs, kNanosecondsPerRun, [&](int64_t number) {
    const int64_t run = number % runs;
    size_t k = 0;
    while (first_run[k + 1] <= run) ++k;
    const int64_t first = (run - first_run[k]) * kChunk;
    const int64_t count = std::min(kChunk, inputs.scales[k].values - first);
    body(k, Run{number / runs, first, count}, number);
  });
}

std::vector<const TypedKernels*> kernels_of(const Inputs& inputs) {
  std::vector<const TypedKernels*> kernels;
  for (size_t k = 0; k < inputs.scales.size(); ++k) kernels.push_back(&kernels_for(inputs.type(k)));
  return kernels;
}

/// Adds up the runs of each sample and scale, one after the other.
template <typename A>
void finish(const Inputs& inputs, const std::vector<double>& sums, double eps, Tensor& d_clean,
            Tensor& d_noisy, Tensor& dots) {
  A *clean = d_clean.mutable_data_ptr<A>(), *noisy = d_noisy.mutable_data_ptr<A>(),
    *kept = dots.mutable_data_ptr<A>();
  const double* next = sums.data();
  for (int64_t i = 0; i < inputs.samples() * inputs.count(); ++i) {
    double total[kDots] = {};
    for (int64_t chunk = 0; chunk < inputs.scales[static_cast<size_t>(i % inputs.count())].chunks();
         ++chunk) {
      for (int dot = 0; dot < kDots; ++dot) total[dot] += *next++;
    }
    for (int dot = 0; dot < kDots; ++dot) kept[i * kDots + dot] = static_cast<A>(total[dot]);
    clean[i] = static_cast<A>(cosine::distance(total[0], total[2], total[4], eps));
    if (inputs.has_noisy()) noisy[i] = static_cast<A>(cosine::distance(total[1], total[3], total[4], eps));
  }
}

std::tuple<Tensor, Tensor, Tensor> contrastive_distance(const std::vector<Tensor>& clean,
                                                        const std::vector<Tensor>& noisy,
                                                        const std::vector<Tensor>& student, double eps) {
  const Inputs inputs(clean, noisy, student);
  const auto kernels = kernels_of(inputs);
  int64_t runs = 0;
  for (const Maps& maps : inputs.scales) runs += maps.chunks();
  std::vector<double> sums(static_cast<size_t>(inputs.samples() * runs * kDots));
  for_each_run(inputs, [&](size_t k, const Run& run, int64_t number) {
    kernels[k]->sums(inputs.scales[k], run, sums.data() + number * kDots);
  });
  Tensor d_clean = inputs.allocate_distances(), d_noisy = inputs.allocate_distances(inputs.has_noisy());
  Tensor dots = inputs.allocate({inputs.samples(), inputs.count(), kDots});
  if (inputs.accumulator() == ScalarType::Double) {
    finish<double>(inputs, sums, eps, d_clean, d_noisy, dots);
  } else {
    finish<float>(inputs, sums, eps, d_clean, d_noisy, dots);
  }
  return {d_clean, d_noisy, dots};
}

/// Of each sample and scale.
template <typename A>
std::vector<Slopes<double>> all_slopes(const Tensor& to_clean, const Tensor& to_noisy, const Tensor& dots,
                                       bool has_noisy, double eps) {
  const A *clean = to_clean.const_data_ptr<A>(), *noisy = to_noisy.const_data_ptr<A>(),
          *kept = dots.const_data_ptr<A>();
  std::vector<Slopes<double>> found;
  for (int64_t i = 0; i < to_clean.numel(); ++i, kept += kDots) {
    const Dots<double> of{static_cast<double>(kept[0]), static_cast<double>(kept[1]),
                          static_cast<double>(kept[2]), static_cast<double>(kept[3]),
                          static_cast<double>(kept[4])};
    const double from_noisy = has_noisy ? static_cast<double>(noisy[i]) : 0.0;
    found.push_back(slopes(of, static_cast<double>(clean[i]), from_noisy, eps));
  }
  return found;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> contrastive_distance_backward(
    const Tensor& grad_clean, const Tensor& grad_noisy, const Tensor& dots, const std::vector<Tensor>& clean,
    const std::vector<Tensor>& noisy, const std::vector<Tensor>& student, double eps, bool teacher_grad) {
  const Inputs inputs(clean, noisy, student);
  const int64_t n = inputs.samples(), count = inputs.count();
  const Tensor from_clean = inputs.checked(grad_clean, {n, count}),
               sums = inputs.checked(dots, {n, count, kDots});
  const Tensor from_noisy = inputs.has_noisy() ? inputs.checked(grad_noisy, {n, count}) : from_clean;
  const auto slopes = inputs.accumulator() == ScalarType::Double
                          ? all_slopes<double>(from_clean, from_noisy, sums, inputs.has_noisy(), eps)
                          : all_slopes<float>(from_clean, from_noisy, sums, inputs.has_noisy(), eps);
  const auto kernels = kernels_of(inputs);
  std::vector<Tensor> to_clean, to_noisy, to_student;
  std::vector<Gradients> wanted;
  const auto add = [&](std::vector<Tensor>& to, size_t k, bool asked) -> void* {
    if (!asked) return nullptr;
    to.push_back(inputs.scale(k).allocate_gradient());
    return to.back().mutable_data_ptr();
  };
  for (size_t k = 0; k < inputs.scales.size(); ++k) {
    wanted.push_back({add(to_clean, k, teacher_grad), add(to_noisy, k, teacher_grad && inputs.has_noisy()),
                      add(to_student, k, true)});
  }
  for_each_run(inputs, [&](size_t k, const Run& run, int64_t) {
    const size_t at = static_cast<size_t>(run.sample * count) + k;
    kernels[k]->gradients(inputs.scales[k], run, slopes[at], wanted[k]);
  });
  return {to_clean, to_noisy, to_student};
}

}  // namespace
}  // namespace scrd::contrastive

STABLE_TORCH_LIBRARY_IMPL(scrd_fast, CPU, m) {
  m.impl("contrastive_distance", TORCH_BOX(&scrd::contrastive::contrastive_distance));
  m.impl("contrastive_distance_backward", TORCH_BOX(&scrd::contrastive::contrastive_distance_backward));
}
