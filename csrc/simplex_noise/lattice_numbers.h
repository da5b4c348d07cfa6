// SPDX-License-Identifier: Apache-2.0
// Numbers for the lattice points around a block of points. Neighbouring points have most vertices in common:
// of the 8 x 64 vertices of a block there are some 10 to 100 different ones, unless a cell is hardly larger
// than a pixel.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "simplex_noise/simplex_noise.h"

namespace scrd::simplex {
inline namespace SCRD_ISA {

/// Numbers different keys in the order in which they are first seen.
template <int kSlotBits>
class Numbering {
 public:
  static constexpr int kSlots = 1 << kSlotBits;

  Numbering() {
    for (int slot = 0; slot < kSlots; ++slot) keys_[slot] = kFree;
    for (int slot = 0; slot < kSlots; ++slot) seen_[slot] = 0;
  }
  /// Of a key that is not kFree; fewer than kSlots may be different.
  int of(uint32_t key) {
    uint32_t slot = key * 0x9e3779b1u >> (32 - kSlotBits);
    while (keys_[slot] != key) {
      if (keys_[slot] == kFree) {
        keys_[slot] = key;
        numbers_[slot] = static_cast<uint8_t>(count_);
        seen_[count_++] = key;
        break;
      }
      slot = (slot + 1) % kSlots;
    }
    return numbers_[slot];
  }
  int count() const { return count_; }
  /// The keys in the order of their numbers, then zeros.
  const uint32_t* keys() const { return seen_; }

 private:
  static constexpr uint32_t kFree = ~uint32_t{0};
  int count_ = 0;
  uint32_t keys_[kSlots], seen_[kSlots];
  uint8_t numbers_[kSlots];
};

/// Three coordinates modulo 256 as one key, apart so that keys can be added.
constexpr uint32_t lattice_key(int x, int y, int z) {
  return static_cast<uint32_t>(x & 255) | static_cast<uint32_t>(y & 255) << 10 |
         static_cast<uint32_t>(z & 255) << 20;
}
constexpr uint32_t kKeyBits = lattice_key(255, 255, 255);

/// Of the vertices of each region, beside the cell's origin. One that does not exist weighs nothing and is as
/// good as the first.
struct VertexKeys {
  uint32_t of[kCodes][kVertices];
};

constexpr VertexKeys make_vertex_keys() {
  VertexKeys keys{};
  for (int code = 0; code < kCodes; ++code) {
    const uint64_t word = region_vertices(code);
    for (int v = 0; v < kVertices; ++v) {
      const int x = vertex_offset(word, v, 0), y = vertex_offset(word, v, 1), z = vertex_offset(word, v, 2);
      const bool exists = x != 2 || y != 2 || z != 2;
      keys.of[code][v] = exists ? lattice_key(x, y, z) : keys.of[code][0];
    }
  }
  return keys;
}

constexpr VertexKeys kVertexKeys = make_vertex_keys();

}  // namespace SCRD_ISA
}  // namespace scrd::simplex
