// SPDX-License-Identifier: Apache-2.0
// scrd_fast._C: what this build was made from and for. No operator passes through here, and no torch header
// is included, so that it loads, and can explain, where torch is missing or another one than was built for.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "build_facts.h"  // written by CMake

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the native build of scrd_fast.";
  m.def(
      "build_info",
      [] {
        return std::map<std::string, std::string>{
            {"package_version", PACKAGE_VERSION}, {"commit", GIT_COMMIT}, {"torch", TORCH_VERSION},
            {"torch_target", TORCH_TARGET},       {"cuda", CUDA_VERSION}, {"cuda_archs", CUDA_ARCHS},
            {"no_cuda_reason", NO_CUDA_REASON},   {"compiler", COMPILER},
        };
      },
      "The build as text: versions, CUDA architectures, compiler, commit; `cuda` is empty without a CUDA "
      "library.");
}
