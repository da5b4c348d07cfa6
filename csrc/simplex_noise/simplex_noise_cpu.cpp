// SPDX-License-Identifier: Apache-2.0
#include "simplex_noise/simplex_noise_cpu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/isa.h"
#include "common/parallel.h"
#include "simplex_noise/simplex_noise_binding.h"

namespace scrd::simplex {

NoiseKernel noise_kernel(Variant variant) {
  return variant == Variant::kHashed ? SCRD_CHOOSE_ISA(hashed_kernel) : SCRD_CHOOSE_ISA(opensimplex_kernel);
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

constexpr int kSide = 8;  // of a square of kLanes points

struct Volume {
  int64_t depth, height, width;

  int64_t elements() const { return depth * height * width; }
  /// Whether blocks are squares: their points have more lattice points in common than those of rows.
  bool in_squares() const { return height % kSide == 0 && width % kSide == 0; }
};

/// Where a block's points lie: runs of elements that are neighbours in memory.
struct Block {
  int64_t w, h, d;  // first point
  int run, lanes;
  int64_t first, stride;  // first element, and from one run to the next
};

Block find_block(const Volume& volume, int64_t block) {
  const auto [depth, height, width] = volume;
  if (volume.in_squares()) {
    const int64_t w = block % (width / kSide) * kSide, row = block / (width / kSide) * kSide;
    return {w, row % height, row / height, kSide, kLanes, row * width + w, width};
  }
  const int64_t first = block * kLanes;
  const int lanes = static_cast<int>(std::min<int64_t>(kLanes, depth * height * width - first));
  return {first % width, first / width % height, first / width / height, lanes, lanes, first, 0};
}

/// Lanes beyond a volume's end repeat the start of the next.
Points locate_points(const Volume& volume, const Block& block) {
  Points points;
  int64_t w = block.w, h = block.h, d = block.d;
  const int64_t left = volume.in_squares() ? block.w : 0;
  const int64_t right = volume.in_squares() ? block.w + kSide : volume.width;
  for (int i = 0; i < kLanes; ++i) {
    points.x[i] = static_cast<int32_t>(w);
    points.y[i] = static_cast<int32_t>(h);
    points.z[i] = static_cast<int32_t>(d);
    if (++w < right) continue;
    w = left;
    if (++h < volume.height) continue;
    h = 0;
    ++d;
  }
  return points;
}

/// A task is 64 points of up to kGroup samples.
void fill(const std::vector<SeedState>& seeds, const Volume& volume, Variant variant, const Fractal& fractal,
          float* out) {
  constexpr int64_t kNanosecondsPerOctave = 4;  // of one element, measured
  const NoiseKernel kernel = noise_kernel(variant);
  const int64_t elements = volume.elements(), samples = static_cast<int64_t>(seeds.size());
  const int64_t blocks = (elements + kLanes - 1) / kLanes, groups = (samples + kGroup - 1) / kGroup;
  const int64_t cost = kNanosecondsPerOctave * fractal.octaves * kLanes * std::min<int64_t>(samples, kGroup);
  parallel_for(blocks * groups, cost, [&](int64_t task) {
    const int64_t n = task / blocks * kGroup;
    const int count = static_cast<int>(std::min<int64_t>(kGroup, samples - n));
    const SeedState* group[kGroup];
    for (int s = 0; s < count; ++s) group[s] = &seeds[static_cast<size_t>(n + s)];
    const Block block = find_block(volume, task % blocks);
    alignas(64) float values[kGroup][kLanes];
    kernel(locate_points(volume, block), group, count, fractal, values);
    for (int s = 0; s < count; ++s) {
      float* to = out + (n + s) * elements + block.first;
      for (int i = 0; i < block.lanes; i += block.run, to += block.stride) {
        std::copy_n(values[s] + i, block.run, to);
      }
    }
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
