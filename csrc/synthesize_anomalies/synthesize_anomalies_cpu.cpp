// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include <algorithm>
#include <numeric>

#include "common/parallel.h"
#include "simplex_noise/simplex_noise_cpu.h"
#include "synthesize_anomalies/patch_groups.h"
#include "synthesize_anomalies/synthesize_anomalies_binding.h"

namespace scrd::anomalies {
namespace {

using simplex::kGroup;
using simplex::kLanes;

/// Where a tile begins, in its patches.
struct Corner {
  int channel, row, column;
};

Corner tile_corner(const Group& group, int64_t tile) {
  return {static_cast<int>(tile / group.across / group.down) * group.tile.channels,
          static_cast<int>(tile / group.across % group.down) * group.tile.height,
          static_cast<int>(tile % group.across) * group.tile.width};
}

/// The points of a tile, as coordinates of the noise; lanes beyond them repeat the first.
simplex::Points tile_points(const Group& group, const Corner& corner) {
  const Patch& patch = group.members->patch;
  const Tile& tile = group.tile;
  const auto add = [](int a, int b, int c) {  // beyond the patches the sum may leave 32 bits
    return static_cast<int32_t>(int64_t{a} + b + c);
  };
  simplex::Points points;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int i = lane < tile.channels * tile.height * tile.width ? lane : 0;
    points.x[lane] = add(patch.skipped_columns, corner.column, i % tile.width);
    points.y[lane] = add(patch.skipped_rows, corner.row, i / tile.width % tile.height);
    points.z[lane] = corner.channel + i / tile.width / tile.height;
  }
  return points;
}

/// Adds a tile's noise where it lies inside an image's patch.
template <typename T>
void add_lanes(const Images<T>& images, const Member& member, const Tile& tile, const Corner& corner,
               const float* noise, const Task& task) {
  const Patch& patch = member.patch;
  const int channels = std::min(tile.channels, static_cast<int>(images.sizes[1]) - corner.channel);
  const int height = std::min(tile.height, patch.height - corner.row);
  const int width = std::min(tile.width, patch.width - corner.column);
  T* first = images.data + member.image * images.strides[0] + corner.channel * images.strides[1] +
             (patch.top + corner.row) * images.strides[2] + (patch.left + corner.column) * images.strides[3];
  for (int c = 0; c < channels; ++c) {
    for (int h = 0; h < height; ++h) {
      T* pixel = first + c * images.strides[1] + h * images.strides[2];
      const float* row = noise + (c * tile.height + h) * tile.width;
      for (int w = 0; w < width; ++w, pixel += images.strides[3]) {
        *pixel = add_noise(*pixel, row[w], task.strength, task.std_data(), corner.channel + c);
      }
    }
  }
}

template <typename T>
void add_tile(const Images<T>& images, const Group& group, int64_t tile,
              const std::vector<simplex::SeedState>& seeds, simplex::NoiseKernel kernel, const Task& task) {
  const Corner corner = tile_corner(group, tile);
  const Member* reached[kGroup];
  const simplex::SeedState* states[kGroup];
  int count = 0;
  for (const Member& member : group) {
    if (corner.row >= member.patch.height || corner.column >= member.patch.width) continue;
    states[count] = &seeds[static_cast<size_t>(member.image)];
    reached[count++] = &member;
  }
  if (count == 0) return;
  alignas(64) float noise[kGroup][kLanes];
  kernel(tile_points(group, corner), states, count, task.fractal, noise);
  for (int s = 0; s < count; ++s) add_lanes(images, *reached[s], group.tile, corner, noise[s], task);
}

/// A number near the golden section of `count` that has no divisor in common with it: its multiples modulo
/// `count` are all numbers below `count`, in an order in which any stretch is spread over all of them.
int64_t spreading_step(int64_t count) {
  int64_t step = std::max<int64_t>(1, static_cast<int64_t>(0.618 * static_cast<double>(count)));
  while (std::gcd(step, count) != 1) --step;
  return step;
}

/// A task is a tile. Fewer images reach into the later tiles of a group, so that every thread gets some of
/// all.
template <typename T>
void add_patches(const Images<T>& images, const Task& task) {
  const int64_t samples = images.sizes[0], channels = images.sizes[1];
  const simplex::NoiseKernel kernel = simplex::noise_kernel(task.variant);
  const auto seeds = simplex::prepare_seeds(task.seeds.const_data_ptr<int64_t>(), samples, task.variant);
  const auto members =
      order_members(task.boxes.const_data_ptr<int32_t>(), samples, images.sizes[2], images.sizes[3]);
  const auto groups = make_groups(members, channels);
  std::vector<int64_t> ends;  // of the groups' tiles
  int64_t tiles = 0, kernels = 0;
  for (const Group& group : groups) {
    ends.push_back(tiles += group.tiles);
    kernels += group.cost(channels);
  }
  if (tiles == 0) return;
  constexpr int64_t kNanosecondsPerOctave = 4;  // of one element
  const int64_t cost = kNanosecondsPerOctave * task.fractal.octaves * kLanes * kernels / tiles;
  const int64_t step = spreading_step(tiles);
  parallel_for(tiles, cost, [&](int64_t index) {
    const int64_t tile = index * step % tiles;
    const auto end = std::upper_bound(ends.begin(), ends.end(), tile);
    const Group& group = groups[static_cast<size_t>(end - ends.begin())];
    add_tile(images, group, tile - (*end - group.tiles), seeds, kernel, task);
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
