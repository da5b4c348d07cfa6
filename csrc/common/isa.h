// SPDX-License-Identifier: Apache-2.0
// The choice of a CPU kernel's instruction set at run time.
#pragma once

namespace scrd {

enum class Isa { kBaseline, kAvx2, kAvx512 };

/// The newest of the instruction sets that were built and that this CPU has, or the one that the environment
/// variable SCRD_FAST_ISA names; read once. Throws std::invalid_argument where that one is unknown or
/// missing.
Isa chosen_isa();

/// `choose(baseline, avx2, avx512)`: the one for this CPU. Where only the baseline was built, it serves all.
#if defined(SCRD_X86)
#define SCRD_CHOOSE_ISA(name)                                  \
  (::scrd::chosen_isa() == ::scrd::Isa::kAvx512 ? avx512::name \
   : ::scrd::chosen_isa() == ::scrd::Isa::kAvx2 ? avx2::name   \
                                                : baseline::name)
#else
#define SCRD_CHOOSE_ISA(name) ((void)::scrd::chosen_isa(), baseline::name)
#endif

}  // namespace scrd
