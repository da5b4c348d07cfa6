// SPDX-License-Identifier: Apache-2.0
#include "common/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace scrd {
namespace {

struct Level {
  const char* name;
  bool available;
};

constexpr int kLevels = 3;

/// In the order of Isa. What each level may use stands in CMakeLists.txt.
const Level* levels() {
#if defined(SCRD_X86)
  __builtin_cpu_init();
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi");
#else
  static const bool avx2 = false, avx512 = false;
#endif
  static const Level all[kLevels] = {{"baseline", true}, {"avx2", avx2}, {"avx512", avx512}};
  return all;
}

int choose() {
  const char* asked = std::getenv("SCRD_FAST_ISA");
  const Level* all = levels();
  if (asked == nullptr || *asked == '\0') {
    int newest = kLevels - 1;
    while (!all[newest].available) --newest;
    return newest;
  }
  for (int i = 0; i < kLevels; ++i) {
    if (all[i].name != std::string(asked)) continue;
    if (all[i].available) return i;
    throw std::invalid_argument("SCRD_FAST_ISA=" + std::string(asked) +
                                ": this CPU or build does not have it");
  }
  throw std::invalid_argument("SCRD_FAST_ISA must be baseline, avx2 or avx512, got " + std::string(asked));
}

}  // namespace

Isa chosen_isa() {
  static const int chosen = choose();
  return static_cast<Isa>(chosen);
}

}  // namespace scrd

/// For Python: the name of the instruction set in use, or nullptr where SCRD_FAST_ISA asks for what is not
/// there.
extern "C" __attribute__((visibility("default"))) const char* scrd_fast_isa() {
  try {
    return scrd::levels()[static_cast<int>(scrd::chosen_isa())].name;
  } catch (const std::invalid_argument&) {
    return nullptr;
  }
}
