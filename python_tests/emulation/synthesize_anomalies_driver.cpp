// SPDX-License-Identifier: Apache-2.0
#include "driver.h"
#include "synthesize_anomalies/synthesize_anomalies_kernels.cuh"

namespace {

using driver::Arguments;
using driver::Array;

/// The array "images" holds whole rows of memory; the images are the view that sizes and strides describe.
template <typename T>
void run_with(const Arguments& arguments) {
  using namespace scrd;
  const Array<T> memory = arguments.array<T>("images");
  const Array<int64_t> shape = arguments.array<int64_t>("shape");  // sizes, strides, offset
  const Array<int32_t> boxes = arguments.array<int32_t>("boxes");
  const Array<int64_t> seeds = arguments.array<int64_t>("seeds");
  const Array<float> std = arguments.has("std") ? arguments.array<float>("std") : Array<float>();
  anomalies::Images<T> images{memory.data() + shape[8], {}, {}};
  for (size_t axis = 0; axis < 4; ++axis) {
    images.sizes[axis] = shape[axis];
    images.strides[axis] = shape[4 + axis];
  }
  const auto variant =
      arguments.text("variant") == "hashed" ? simplex::Variant::kHashed : simplex::Variant::kOpenSimplex;
  anomalies::launch_synthesize_anomalies(
      variant, images, boxes.data(), seeds.data(), static_cast<float>(arguments.number("strength")),
      arguments.has("std") ? std.data() : nullptr, {arguments.integer("octaves"), 0.6, 0.25}, nullptr);
  arguments.give(memory);
}

}  // namespace

void driver::run(const Arguments& arguments) {
  const std::string& dtype = arguments.text("dtype");
  if (dtype == "float32") run_with<float>(arguments);
  if (dtype == "float64") run_with<double>(arguments);
  if (dtype == "float16") run_with<__half>(arguments);
  if (dtype == "bfloat16") run_with<__nv_bfloat16>(arguments);
}
