// SPDX-License-Identifier: Apache-2.0
// Where synthetic anomalies go: a batch of images in memory, and the part of a box that lies inside its
// image.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace scrd::anomalies {

/// [N, C, H, W], with any strides (in elements).
template <typename T>
struct Images {
  T* data;
  int64_t sizes[4];
  int64_t strides[4];
};

inline namespace SCRD_ISA {

/// The part of a box inside the image: the image's rows `top` to `top + height`, which are the box's rows
/// from `skipped_rows` on; columns alike.
struct Patch {
  int top, left, height, width, skipped_rows, skipped_columns;
};

/// The part in [0, size) of a box's side, whatever numbers that has: where it begins, its length, and how
/// much of the side lies before it.
struct Cut {
  int begin, length, skipped;
};

SCRD_HOST_DEVICE inline Cut cut(int64_t size, int64_t begin, int64_t length) {
  const int64_t first = begin > 0 ? begin : 0, end = begin + length, last = end < size ? end : size;
  if (last <= first) return {0, 0, 0};
  return {static_cast<int>(first), static_cast<int>(last - first), static_cast<int>(first - begin)};
}

SCRD_HOST_DEVICE inline Patch cut_box(const int32_t* box, int64_t height, int64_t width) {
  const Cut rows = cut(height, box[0], box[2]), columns = cut(width, box[1], box[3]);
  return {rows.begin, columns.begin, rows.length, columns.length, rows.skipped, columns.skipped};
}

/// Pixel `element` of a patch's `height * width * C`, as the image's pixel and as the noise's coordinates.
struct PatchPixel {
  int channel, row, column;  // of the box, where noise counts from its corner
  int64_t place;             // in memory, from the image's first element
};

template <typename T>
SCRD_HOST_DEVICE PatchPixel patch_pixel(const Patch& patch, const Images<T>& images, uint32_t element) {
  const uint32_t width = static_cast<uint32_t>(patch.width), height = static_cast<uint32_t>(patch.height);
  const int w = static_cast<int>(element % width), h = static_cast<int>(element / width % height);
  const int c = static_cast<int>(element / width / height);
  const int64_t place =
      c * images.strides[1] + (patch.top + h) * images.strides[2] + (patch.left + w) * images.strides[3];
  return {c, patch.skipped_rows + h, patch.skipped_columns + w, place};
}

/// The arithmetic of one pixel.
template <typename T>
SCRD_HOST_DEVICE T add_noise(T pixel, float noise, float strength, const float* std, int channel) {
  float added = strength * noise;
  if (std != nullptr) added = added / std[channel];
  if constexpr (sizeof(T) == sizeof(double)) {
    return pixel + static_cast<double>(added);
  } else {
    return static_cast<T>(static_cast<float>(pixel) + added);
  }
}

}  // namespace SCRD_ISA
}  // namespace scrd::anomalies
