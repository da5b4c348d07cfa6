// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include <algorithm>

#include "common/parallel.h"
#include "simplex_noise/simplex_noise_cpu.h"
#include "synthesize_anomalies/synthesize_anomalies_binding.h"

namespace scrd::anomalies {
namespace {

using simplex::kLanes;

/// Adds the noise of 64 pixels of a patch, from pixel `first` on.
template <typename T>
void add_block(const Images<T>& images, int64_t n, const Patch& patch, uint32_t first, uint32_t end,
               const simplex::SeedState& seed, simplex::NoiseKernel kernel, const Task& task) {
  simplex::Points points{};
  PatchPixel pixels[kLanes];
  const int lanes = static_cast<int>(std::min<uint32_t>(kLanes, end - first));
  for (int i = 0; i < lanes; ++i) {
    pixels[i] = patch_pixel(patch, images, first + static_cast<uint32_t>(i));
    points.x[i] = pixels[i].column;
    points.y[i] = pixels[i].row;
    points.z[i] = pixels[i].channel;
  }
  alignas(64) float noise[1][kLanes];
  kernel(points, &seed, 1, task.fractal, noise);
  T* image = images.data + n * images.strides[0];
  for (int i = 0; i < lanes; ++i) {
    T& pixel = image[pixels[i].place];
    pixel = add_noise(pixel, noise[0][i], task.strength, task.std_data(), pixels[i].channel);
  }
}

template <typename T>
void add_patches(const Images<T>& images, const Task& task) {
  const int64_t samples = images.sizes[0];
  const simplex::NoiseKernel kernel = simplex::noise_kernel(task.variant);
  const auto seeds = simplex::prepare_seeds(task.seeds.const_data_ptr<int64_t>(), samples, task.variant);
  const int32_t* boxes = task.boxes.const_data_ptr<int32_t>();
  const auto pixels = [&](const Patch& patch) {
    return static_cast<uint32_t>(patch.height) * static_cast<uint32_t>(patch.width) *
           static_cast<uint32_t>(images.sizes[1]);
  };
  // A task is a part of one patch, so that a few large patches keep all threads busy too.
  constexpr uint32_t kPart = 16 * kLanes;
  uint32_t largest = 0;
  for (int64_t n = 0; n < samples; ++n) {
    largest = std::max(largest, pixels(cut_box(boxes + 4 * n, images.sizes[2], images.sizes[3])));
  }
  const int64_t parts = (static_cast<int64_t>(largest) + kPart - 1) / kPart;
  const int64_t cost = 10 * task.fractal.octaves * std::min(largest, kPart);
  parallel_for(samples * parts, cost, [&](int64_t index) {
    const int64_t n = index / parts;
    const Patch patch = cut_box(boxes + 4 * n, images.sizes[2], images.sizes[3]);
    const int64_t begin = index % parts * kPart, end = std::min<int64_t>(begin + kPart, pixels(patch));
    for (int64_t first = begin; first < end; first += kLanes) {
      add_block(images, n, patch, static_cast<uint32_t>(first), static_cast<uint32_t>(end),
                seeds[static_cast<size_t>(n)], kernel, task);
    }
  });
}

void synthesize_anomalies_(const Tensor& images, const Tensor& boxes, const Tensor& seeds, double strength,
                           const std::optional<Tensor>& std, int64_t octaves, double persistence,
                           double frequency, const std::string& variant) {
  const Task task =
      make_task(images, boxes, seeds, strength, std, {octaves, persistence, frequency}, variant);
  if (images.numel() == 0) return;
  THO_DISPATCH_V2(images.scalar_type(), "synthesize_anomalies",
                  AT_WRAP([&] { add_patches(view_images<scalar_t>(images), task); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
}

Tensor synthesize_anomalies(const Tensor& images, const Tensor& boxes, const Tensor& seeds, double strength,
                            const std::optional<Tensor>& std, int64_t octaves, double persistence,
                            double frequency, const std::string& variant) {
  Tensor result = torch::stable::clone(images);
  synthesize_anomalies_(result, boxes, seeds, strength, std, octaves, persistence, frequency, variant);
  return result;
}

}  // namespace
}  // namespace scrd::anomalies

STABLE_TORCH_LIBRARY_IMPL(scrd_fast, CPU, m) {
  m.impl("synthesize_anomalies", TORCH_BOX(&scrd::anomalies::synthesize_anomalies));
  m.impl("synthesize_anomalies_", TORCH_BOX(&scrd::anomalies::synthesize_anomalies_));
}
