// SPDX-License-Identifier: Apache-2.0
// How a batch of feature maps [N, C, H, W] lies in memory.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>

namespace scrd {

/// Along these axes, from the innermost to the outermost.
inline bool is_dense(const torch::stable::Tensor& x, std::initializer_list<int> axes) {
  int64_t expected = 1;
  for (const int axis : axes) {
    if (x.size(axis) != 1 && x.stride(axis) != expected) return false;
    expected *= x.size(axis);
  }
  return true;
}

/// Of each image: channels-last and not planes, however far apart the images lie.
inline bool is_channels_last(const torch::stable::Tensor& x) {
  return x.size(0) > 0 && is_dense(x, {1, 3, 2}) && !is_dense(x, {3, 2, 1});
}

}  // namespace scrd
