// SPDX-License-Identifier: Apache-2.0
#include "driver.h"
#include "simplex_noise/simplex_noise_kernels.cuh"

void driver::run(const Arguments& arguments) {
  using namespace scrd::simplex;
  const Array<int64_t> seeds = arguments.array<int64_t>("seeds");
  const Variant variant = arguments.text("variant") == "hashed" ? Variant::kHashed : Variant::kOpenSimplex;
  const int64_t samples = static_cast<int64_t>(seeds.size());
  const int64_t depth = arguments.integer("depth"), height = arguments.integer("height"),
                width = arguments.integer("width");
  const Fractal fractal{arguments.integer("octaves"), arguments.number("persistence"),
                        arguments.number("frequency")};
  const Array<float> out = arguments.empty<float>(static_cast<size_t>(samples * depth * height * width));
  launch_simplex_noise(variant, seeds.data(), out.data(), samples, depth, height, width, fractal, nullptr);
  arguments.give(out);
}
