// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of anomaly map and contrastive distance on random sizes and on memory of exactly their
// size: for AddressSanitizer and UBSan. Prints the largest errors against plain loops in double. Argument:
// the number of rounds.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <vector>

#include "anomaly_map/axis_table.h"
#include "common/vectors.h"
#include "contrastive_distance/contrastive_distance_cpu.h"
#include "cosine_distances/cosine_distances_cpu.h"

namespace {

std::mt19937 generator(1);

int pick(std::initializer_list<int> values) { return values.begin()[generator() % values.size()]; }

template <typename T>
std::vector<T> noise(int64_t count) {
  std::vector<T> values;
  std::normal_distribution<double> normal;
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (sizeof(T) == sizeof(double)) {
      values.push_back(normal(generator));
    } else {
      values.push_back(scrd::narrow<T>(static_cast<float>(normal(generator))));
    }
  }
  return values;
}

/// Strides of an image in planes or rows, with gaps or without, and how many elements they reach over.
int64_t lay_out(scrd::cosine::Maps& maps, int gap) {
  const int64_t c = maps.channels, h = maps.height, w = maps.width;
  const int64_t planes[4] = {c * (h * w + gap), h * w + gap, w, 1},
                rows[4] = {h * w * (c + gap), 1, w * (c + gap), c + gap};
  std::copy_n(maps.rows ? rows : planes, 4, maps.teacher_strides);
  std::copy_n(maps.teacher_strides, 4, maps.student_strides);
  const int64_t* s = maps.teacher_strides;
  return (maps.samples - 1) * s[0] + (c - 1) * s[1] + (h - 1) * s[2] + (w - 1) * s[3] + 1;
}

template <typename T, typename A>
double run_distances(const scrd::cosine::TypedKernels& kernels) {
  using namespace scrd::cosine;
  Maps maps{nullptr,
            nullptr,
            pick({1, 2}),
            pick({1, 3, 16, 17, 31, 32, 33, 67}),
            pick({1, 7, 33, 129}),
            pick({1, 3, 16, 31, 64}),
            {},
            {},
            pick({0, 1}) == 1};
  const bool dense = pick({0, 1}) == 1;
  const int64_t size = lay_out(maps, dense ? 0 : 3), pixels = maps.pixels();
  const std::vector<T> teacher = noise<T>(size), student = noise<T>(size);
  maps.teacher = teacher.data();
  maps.student = student.data();
  std::vector<A> out(maps.samples * pixels), grads(out.size(), 1);
  std::vector<T> to_teacher(size), to_student(size);
  double worst = 0;
  const int64_t most = dense ? kSmallTile : pick({kSmallTile, kLargeTile});  // of gradients, the small one
  for (int64_t n = 0; n < maps.samples; ++n) {
    for (int64_t first = 0; first < pixels; first += most) {
      const Tile tile{n, first, static_cast<int>(std::min(most, pixels - first))};
      kernels.distances(maps, tile, 1e-8, out.data());
      if (dense) kernels.gradients(maps, tile, 1e-8, {grads.data(), to_teacher.data(), to_student.data()});
    }
    for (int64_t p = 0; p < pixels; ++p) {
      Dots<double> dots{0, 0, 0};
      for (int64_t c = 0; c < maps.channels; ++c) {
        const int64_t* s = maps.teacher_strides;
        const int64_t at = n * s[0] + c * s[1] + p / maps.width * s[2] + p % maps.width * s[3];
        const double t = scrd::widen(teacher[at]), u = scrd::widen(student[at]);
        dots = {dots.both + t * u, dots.teacher + t * t, dots.student + u * u};
      }
      const double right = distance(dots.both, dots.teacher, dots.student, 1e-8);
      worst = std::max(worst, std::abs(right - static_cast<double>(out[n * pixels + p])));
    }
  }
  return worst;
}

/// The largest error of the sums, as a share of the number of values, and of the gradients.
template <typename T, typename A>
double run_contrasts(const scrd::contrastive::TypedKernels& kernels) {
  using namespace scrd::contrastive;
  const int64_t samples = pick({1, 2}), values = pick({1, 15, 16, 17, 31, 32, 33, 100, 16384}),
                gap = pick({0, 3});
  const bool has_noisy = pick({0, 1}) == 1, teachers = pick({0, 1}) == 1;
  const int64_t stride = values + gap, size = (samples - 1) * stride + values;
  const std::vector<T> clean = noise<T>(size), noisy = noise<T>(size), student = noise<T>(size);
  const Maps maps{
      clean.data(), has_noisy ? noisy.data() : nullptr, student.data(), samples, values, stride, stride,
      stride};
  std::vector<T> to_clean(samples * values), to_noisy(to_clean), to_student(to_clean);
  const Slopes<double> slopes{0.5, -0.25, 2, 1, -1, 0.125, 3};
  const Gradients wanted{teachers ? to_clean.data() : nullptr,
                         teachers && has_noisy ? to_noisy.data() : nullptr, to_student.data()};
  double worst = 0;
  for (int64_t n = 0; n < samples; ++n) {
    double dots[kDots], right[kDots] = {};
    kernels.sums(maps, {n, 0, values}, dots);
    kernels.gradients(maps, {n, 0, values}, slopes, wanted);
    for (int64_t i = 0; i < values; ++i) {
      const double c = scrd::widen(clean[n * stride + i]), s = scrd::widen(student[n * stride + i]);
      const double o = has_noisy ? static_cast<double>(scrd::widen(noisy[n * stride + i])) : 0.0;
      const double terms[kDots] = {c * s, o * s, c * c, o * o, s * s};
      for (int dot = 0; dot < kDots; ++dot) right[dot] += terms[dot];
      const T ideal = scrd::narrow<T>(static_cast<A>(2 * s + 0.5 * c - 0.25 * o));
      const double of = scrd::widen(to_student[n * values + i]), near = scrd::widen(ideal);
      worst = std::max(worst, std::abs(of - near) / (std::abs(near) + 1) / (sizeof(T) == 2 ? 1000 : 1));
    }
    for (int dot = 0; dot < kDots; ++dot) {
      worst = std::max(worst, std::abs(dots[dot] - right[dot]) / static_cast<double>(values));
    }
  }
  return worst;
}

template <typename A>
double run_maps(const scrd::maps::TypedKernels<A>& kernels) {
  using namespace scrd::maps;
  const int64_t height = pick({1, 2, 17, 64, 65, 130}), width = pick({1, 3, 16, 63, 65, 129});
  const double sigma = pick({0, 1, 4, 90});
  const bool mirror = pick({0, 1}) == 1;
  std::vector<std::shared_ptr<const AxisTable<A>>> tables;
  std::vector<std::vector<A>> sources;
  std::vector<ScaleView<A>> scales;
  for (int k = pick({1, 3, 9}); k > 0; --k) {
    const int64_t h = pick({1, 2, 5, 16, 130}), w = pick({1, 3, 17, 64, 130});
    tables.push_back(axis_table<A>({h, height, sigma, mirror}));
    tables.push_back(axis_table<A>({w, width, sigma, mirror}));
    sources.push_back(noise<A>(h * w));
    scales.push_back(
        {sources.back().data(), 1, tables[tables.size() - 2]->view(), tables.back()->view(), nullptr, 0});
  }
  std::vector<A> out(height * width);
  const int64_t step = pick({1, 5, 64});
  for (int64_t begin = 0; begin < height; begin += step) {
    const int64_t end = std::min(begin + step, height);
    const int count = static_cast<int>(scales.size());
    std::vector<A> scratch(scratch_size(scales.data(), count, begin, end));
    kernels.strip(scales.data(), count, begin, end, scratch.data(), out.data() + begin * width);
  }
  double worst = 0, total = 0, expected = 0;
  for (const A pixel : out) total += static_cast<double>(pixel) / static_cast<double>(out.size());
  for (size_t k = 0; k < scales.size(); ++k) {
    const std::vector<double>&a = tables[2 * k]->column_means, &b = tables[2 * k + 1]->column_means;
    for (size_t i = 0; i < sources[k].size(); ++i)
      expected += a[i / b.size()] * b[i % b.size()] * static_cast<double>(sources[k][i]);
  }
  worst = std::abs(total - expected);
  A least, largest;
  if (kernels.range(out.data(), height * width, &least, &largest)) std::abort();
  if (least != *std::min_element(out.begin(), out.end()) ||
      largest != *std::max_element(out.begin(), out.end()))
    std::abort();
  return worst;
}

}  // namespace

int main(int, char** arguments) {
  double distances = 0, contrasts = 0, maps = 0;
  for (int round = std::atoi(arguments[1]); round > 0; --round) {
    const scrd::cosine::CpuKernels& cosine = scrd::cosine::SCRD_ISA::kernels;
    distances = std::max({distances, run_distances<float, float>(cosine.of_float),
                          run_distances<double, double>(cosine.of_double),
                          run_distances<scrd::Half, float>(cosine.of_half),
                          run_distances<scrd::BFloat16, float>(cosine.of_bfloat16)});
    const scrd::contrastive::CpuKernels& contrastive = scrd::contrastive::SCRD_ISA::kernels;
    contrasts = std::max({contrasts, run_contrasts<float, float>(contrastive.of_float),
                          run_contrasts<double, double>(contrastive.of_double),
                          run_contrasts<scrd::Half, float>(contrastive.of_half),
                          run_contrasts<scrd::BFloat16, float>(contrastive.of_bfloat16)});
    maps = std::max({maps, run_maps<float>(scrd::maps::SCRD_ISA::kernels.of_float),
                     run_maps<double>(scrd::maps::SCRD_ISA::kernels.of_double)});
  }
  std::printf("%g %g %g\n", distances, contrasts, maps);
}
