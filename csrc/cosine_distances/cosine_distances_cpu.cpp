// SPDX-License-Identifier: Apache-2.0
#include "cosine_distances/cosine_distances_cpu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "common/isa.h"
#include "common/parallel.h"
#include "cosine_distances/cosine_distances_binding.h"

namespace scrd::cosine {
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
      STD_TORCH_CHECK(false, "features must be float32, float16, bfloat16 or float64");
  }
}

/// Large tiles only where there are images enough to keep all threads busy.
int64_t tile_of_distances(const Maps& maps) {
  const bool few = maps.samples < 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  return maps.rows || few ? kSmallTile : kLargeTile;
}

/// Calls body(k, tile) for every tile of every image and scale, an image's tiles one after the other;
/// `sizes` has each scale's pixels a tile.
template <typename Body>
void for_each_tile(const std::vector<Maps>& scales, const std::vector<int64_t>& sizes, const Body& body) {
  std::vector<int64_t> first_tile{0};
  int64_t values = 0;
  for (size_t k = 0; k < scales.size(); ++k) {
    const Maps& maps = scales[k];
    first_tile.push_back(first_tile.back() + (maps.pixels() + sizes[k] - 1) / sizes[k]);
    values += maps.channels * maps.pixels();
  }
  const int64_t tiles = first_tile.back();
  parallel_for(scales[0].samples * tiles, values / std::max<int64_t>(1, tiles), [&](int64_t task) {
    const int64_t tile = task % tiles;
    size_t k = 0;
    while (first_tile[k + 1] <= tile) ++k;
    const int64_t first = (tile - first_tile[k]) * sizes[k];
    const int64_t count = std::min(sizes[k], scales[k].pixels() - first);
    body(k, Tile{task / tiles, first, static_cast<int>(count)});
  });
}

std::vector<Tensor> cosine_distances(const std::vector<Tensor>& teacher, const std::vector<Tensor>& student,
                                     double eps) {
  check_lengths(teacher, student);
  std::vector<Pair> pairs;
  std::vector<Tensor> results;
  std::vector<Maps> scales;
  std::vector<int64_t> sizes;
  std::vector<void*> outs;
  std::vector<const TypedKernels*> kernels;  // scales may differ in type
  for (size_t k = 0; k < teacher.size(); ++k) {
    pairs.emplace_back(teacher[k], student[k]);
    scales.push_back(pairs[k].maps());
    sizes.push_back(tile_of_distances(scales[k]));
    kernels.push_back(&kernels_for(pairs[k].type()));
    results.push_back(pairs[k].allocate());
    outs.push_back(results[k].mutable_data_ptr());
  }
  for_each_tile(scales, sizes,
                [&](size_t k, const Tile& tile) { kernels[k]->distances(scales[k], tile, eps, outs[k]); });
  return results;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> cosine_distances_backward(
    const std::vector<Tensor>& grads, const std::vector<Tensor>& teacher, const std::vector<Tensor>& student,
    double eps, bool teacher_grad) {
  check_lengths(teacher, student);
  check_lengths(teacher, grads);
  std::vector<Pair> pairs;
  std::vector<Tensor> dense_grads, to_teacher, to_student;
  std::vector<Maps> scales;
  std::vector<Gradients> wanted;
  std::vector<const TypedKernels*> kernels;
  for (size_t k = 0; k < teacher.size(); ++k) {
    pairs.push_back(Pair::dense(teacher[k], student[k]));
    scales.push_back(pairs[k].maps());
    kernels.push_back(&kernels_for(pairs[k].type()));
    dense_grads.push_back(pairs[k].checked_grad(grads[k]));
    to_student.push_back(torch::stable::empty_like(pairs[k].student()));
    if (teacher_grad) to_teacher.push_back(torch::stable::empty_like(pairs[k].teacher()));
    wanted.push_back({dense_grads[k].const_data_ptr(),
                      teacher_grad ? to_teacher[k].mutable_data_ptr() : nullptr,
                      to_student[k].mutable_data_ptr()});
  }
  const std::vector<int64_t> sizes(scales.size(), kSmallTile);
  for_each_tile(scales, sizes,
                [&](size_t k, const Tile& tile) { kernels[k]->gradients(scales[k], tile, eps, wanted[k]); });
  return {to_teacher, to_student};
}

}  // namespace
}  // namespace scrd::cosine

STABLE_TORCH_LIBRARY_IMPL(scrd_fast, CPU, m) {
  m.impl("cosine_distances", TORCH_BOX(&scrd::cosine::cosine_distances));
  m.impl("cosine_distances_backward", TORCH_BOX(&scrd::cosine::cosine_distances_backward));
}
