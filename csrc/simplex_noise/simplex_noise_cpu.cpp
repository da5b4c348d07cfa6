// SPDX-License-Identifier: Apache-2.0
#include "simplex_noise/simplex_noise_cpu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/isa.h"
#include "common/parallel.h"
#include "simplex_noise/simplex_noise_binding.h"

namespace scrd::simplex {

NoiseKernel noise_kernel(Variant variant) {
  const CpuKernels& kernels = SCRD_CHOOSE_ISA(kernels);
  return variant == Variant::kHashed ? kernels.hashed : kernels.opensimplex;
}

std::vector<SeedState> prepare_seeds(const int64_t* seeds, int64_t count, Variant variant) {
  constexpr int64_t kNanosecondsPerShuffle = 2500;
  std::vector<SeedState> states(static_cast<size_t>(count));
  const int64_t cost = variant == Variant::kHashed ? 10 : kNanosecondsPerShuffle;
  parallel_for(count, cost, [&](int64_t n) {
    SeedState& state = states[static_cast<size_t>(n)];
    state.keys = hash_keys(seeds[n]);
    if (variant == Variant::kHashed) return;
    prepare_permutation(seeds[n], state);
  });
  return states;
}

namespace {

struct Volume {
  int64_t depth, height, width;
};

/// The points first ... first + kLanes - 1 of a volume; lanes beyond its end repeat the start of the next.
void locate_points(const Volume& volume, int64_t first, Points& points) {
  int64_t w = first % volume.width, h = first / volume.width % volume.height,
          d = first / volume.width / volume.height;
  for (int i = 0; i < kLanes; ++i) {
    points.x[i] = static_cast<int32_t>(w);
    points.y[i] = static_cast<int32_t>(h);
    points.z[i] = static_cast<int32_t>(d);
    if (++w < volume.width) continue;
    w = 0;
    if (++h < volume.height) continue;
    h = 0;
    ++d;
  }
}

/// A task is 64 points of up to kGroup samples.
void fill(const std::vector<SeedState>& seeds, const Volume& volume, Variant variant, const Fractal& fractal,
          float* out) {
  constexpr int64_t kNanosecondsPerOctave = 4;  // of one element, measured
  const NoiseKernel kernel = noise_kernel(variant);
  const int64_t elements = volume.depth * volume.height * volume.width;
  const int64_t samples = static_cast<int64_t>(seeds.size());
  const int64_t blocks = (elements + kLanes - 1) / kLanes, groups = (samples + kGroup - 1) / kGroup;
  const int64_t cost = kNanosecondsPerOctave * fractal.octaves * kLanes * std::min<int64_t>(samples, kGroup);
  parallel_for(blocks * groups, cost, [&](int64_t task) {
    const int64_t first = task % blocks * kLanes, n = task / blocks * kGroup;
    const int count = static_cast<int>(std::min<int64_t>(kGroup, samples - n));
    Points points;
    const SeedState* group[kGroup];
    for (int s = 0; s < count; ++s) group[s] = &seeds[static_cast<size_t>(n + s)];
    alignas(64) float values[kGroup][kLanes];
    locate_points(volume, first, points);
    kernel(points, group, count, fractal, values);
    const int64_t lanes = std::min<int64_t>(kLanes, elements - first);
    for (int s = 0; s < count; ++s) std::copy_n(values[s], lanes, out + (n + s) * elements + first);
  });
}

Tensor simplex_noise(const Tensor& seeds, const std::vector<int64_t>& size, int64_t octaves,
                     double persistence, double frequency, const std::string& variant) {
  const Variant parsed = parse_variant(variant);
  Tensor out = allocate(seeds, size);
  if (out.numel() == 0) return out;
  const Tensor dense = torch::stable::contiguous(seeds);
  const auto states = prepare_seeds(dense.const_data_ptr<int64_t>(), seeds.size(0), parsed);
  fill(states, {size[0], size[1], size[2]}, parsed, {octaves, persistence, frequency},
       out.mutable_data_ptr<float>());
  return out;
}

}  // namespace
}  // namespace scrd::simplex

STABLE_TORCH_LIBRARY_IMPL(scrd_fast, CPU, m) {
  m.impl("simplex_noise", TORCH_BOX(&scrd::simplex::simplex_noise));
}
