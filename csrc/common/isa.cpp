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
  static const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  static const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi");
#else
  static const bool avx2 = false, avx512 = false;
#endif
  static const Level all[kLevels] = {{"baseline", true}, {"avx2", avx2}, {"avx512", avx512}};
  return all;
}

struct Choice {
  int level = 0;
  std::string error;
};

Choice choose() {
  const char* asked = std::getenv("SCRD_FAST_ISA");
  const Level* all = levels();
  if (asked == nullptr || *asked == '\0') {
    int newest = kLevels - 1;
    while (!all[newest].available) --newest;
    return {newest, ""};
  }
  for (int i = 0; i < kLevels; ++i) {
    if (all[i].name != std::string(asked)) continue;
    if (all[i].available) return {i, ""};
    return {0, "SCRD_FAST_ISA=" + std::string(asked) + ": this CPU or build does not have it"};
  }
  return {0, "SCRD_FAST_ISA must be baseline, avx2 or avx512, got " + std::string(asked)};
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

Isa chosen_isa() {
  if (!choice().error.empty()) throw std::invalid_argument(choice().error);
  return static_cast<Isa>(choice().level);
}

}  // namespace scrd

// For Python, which asks when it has loaded the library: the name of the instruction set in use, or what is
// wrong with SCRD_FAST_ISA.
extern "C" __attribute__((visibility("default"))) const char* scrd_fast_isa() {
  return scrd::choice().error.empty() ? scrd::levels()[scrd::choice().level].name : nullptr;
}

extern "C" __attribute__((visibility("default"))) const char* scrd_fast_isa_error() {
  return scrd::choice().error.empty() ? nullptr : scrd::choice().error.c_str();
}
