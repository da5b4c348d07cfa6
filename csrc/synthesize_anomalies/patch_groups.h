// SPDX-License-Identifier: Apache-2.0
// Which images of a batch share the noise's geometry on a CPU. The noise of every patch counts from the
// corner of its box, so patches that begin at the same place in their boxes have the same points, as far as
// they reach: a group of them is walked through in tiles, each for all images that reach into it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "simplex_noise/simplex_noise_cpu.h"
#include "synthesize_anomalies/synthesize_anomalies.h"

namespace scrd::anomalies {

struct Member {
  int64_t image;
  Patch patch;  // not empty
};

/// Some channels, rows and columns of a patch: at most kLanes points.
struct Tile {
  int channels, height, width;
};

/// Up to simplex::kGroup images whose patches begin at the same place in their boxes.
struct Group {
  const Member* members;
  int count;
  Tile tile;
  int64_t down, across, tiles;  // tiles along the highest patch, along the widest, and in all

  const Member* begin() const { return members; }
  const Member* end() const { return members + count; }
  void set_tile(const Tile& shape, int64_t channels);
  int64_t cost(int64_t channels) const;
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline void Group::set_tile(const Tile& shape, int64_t channels) {
  tile = shape;
  down = across = 0;
  for (const Member& member : *this) {
    down = std::max(down, divide_up(member.patch.height, tile.height));
    across = std::max(across, divide_up(member.patch.width, tile.width));
  }
  tiles = divide_up(channels, tile.channels) * down * across;
}

/// Of all tiles, in calls of the kernel for one more seed; the first of a call costs about three.
inline int64_t Group::cost(int64_t channels) const {
  int64_t sum = 2 * down * across;
  for (const Member& member : *this) {
    sum += divide_up(member.patch.height, tile.height) * divide_up(member.patch.width, tile.width);
  }
  return sum * divide_up(channels, tile.channels);
}

/// Chooses the shape that leaves the fewest lanes idle at the patches' ends; of several the most compact one,
/// whose points have most lattice points in common.
inline void choose_tile(Group& group, int64_t channels) {
  Group best = group;
  const auto key = [channels](const Group& one) {
    return std::make_tuple(one.cost(channels), one.tile.channels + one.tile.height + one.tile.width);
  };
  for (int depth = 1; depth <= std::min<int64_t>(channels, 4); ++depth) {
    const int area = simplex::kLanes / depth;
    for (int height = 1; height <= area; ++height) {
      const int width = area / height;
      if (width == area / (height + 1)) continue;  // higher and as wide
      group.set_tile({depth, height, width}, channels);
      if (best.tiles == 0 || key(group) < key(best)) best = group;
    }
  }
  group = best;
}

/// The images whose box covers a part of them. Patches of one group are as similar in size as may be.
inline std::vector<Member> order_members(const int32_t* boxes, int64_t count, int64_t height, int64_t width) {
  std::vector<Member> members;
  for (int64_t n = 0; n < count; ++n) {
    const Patch patch = cut_box(boxes + 4 * n, height, width);
    if (patch.height > 0 && patch.width > 0) members.push_back({n, patch});
  }
  const auto key = [](const Member& member) {
    const Patch& patch = member.patch;
    return std::make_tuple(patch.skipped_rows, patch.skipped_columns, int64_t{patch.height} * patch.width,
                           member.image);
  };
  std::sort(members.begin(), members.end(),
            [&](const Member& a, const Member& b) { return key(a) < key(b); });
  return members;
}

/// Groups of `members`, which must outlive them.
inline std::vector<Group> make_groups(const std::vector<Member>& members, int64_t channels) {
  std::vector<Group> groups;
  const auto same_corner = [](const Patch& a, const Patch& b) {
    return a.skipped_rows == b.skipped_rows && a.skipped_columns == b.skipped_columns;
  };
  for (const Member& member : members) {
    if (groups.empty() || groups.back().count == simplex::kGroup ||
        !same_corner(groups.back().members->patch, member.patch)) {
      groups.push_back({&member, 0, {}, 0, 0, 0});
    }
    ++groups.back().count;
  }
  for (Group& group : groups) choose_tile(group, channels);
  return groups;
}

}  // namespace scrd::anomalies
