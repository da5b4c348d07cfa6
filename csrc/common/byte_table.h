// SPDX-License-Identifier: Apache-2.0
// Tables of bytes, looked up for 64 indices at once: in registers where the CPU can permute bytes across a
// whole register, else in memory.
#pragma once

#include <cstdint>

#if defined(__AVX512VBMI__)
#include <immintrin.h>
#endif

#include "common/host_device.h"

namespace scrd {
inline namespace SCRD_ISA {

constexpr int kTableLanes = 64;

#if defined(__AVX512VBMI__)

/// 256 bytes.
class ByteTable {
 public:
  explicit ByteTable(const uint8_t* entries) {
    for (int i = 0; i < 4; ++i) part_[i] = _mm512_loadu_si512(entries + 64 * i);
  }
  /// `indices` and `values` are 64 bytes each, aligned to 64.
  void look_up(const uint8_t* indices, uint8_t* values) const {
    const __m512i index = _mm512_load_si512(indices);
    const __m512i low = _mm512_permutex2var_epi8(part_[0], index, part_[1]);
    const __m512i high = _mm512_permutex2var_epi8(part_[2], index, part_[3]);
    _mm512_store_si512(values, _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high));
  }

 private:
  __m512i part_[4];
};

/// 64 bytes; of an index only the low six bits count.
class SmallByteTable {
 public:
  explicit SmallByteTable(const uint8_t* entries) : entries_(_mm512_loadu_si512(entries)) {}
  void look_up(const uint8_t* indices, uint8_t* values) const {
    // With a mask of ones: GCC 12 warns of an uninitialised operand inside the plain intrinsic.
    _mm512_store_si512(values, _mm512_maskz_permutexvar_epi8(~0ull, _mm512_load_si512(indices), entries_));
  }

 private:
  __m512i entries_;
};

#else

class ByteTable {
 public:
  explicit ByteTable(const uint8_t* entries) : entries_(entries) {}
  void look_up(const uint8_t* indices, uint8_t* values) const {
    for (int i = 0; i < kTableLanes; ++i) values[i] = entries_[indices[i]];
  }

 private:
  const uint8_t* entries_;
};

using SmallByteTable = ByteTable;  // indices below 64 only

#endif

}  // namespace SCRD_ISA
}  // namespace scrd
