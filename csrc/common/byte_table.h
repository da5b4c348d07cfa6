// SPDX-License-Identifier: Apache-2.0
// Tables of bytes, looked up for 64 indices at once: in registers where the CPU can permute bytes across a
// whole register, else in memory.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
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

#elif defined(__AVX2__)

/// 64 bytes as four tables of 16, each twice; of an index only the low six bits count.
class SmallByteTable {
 public:
  explicit SmallByteTable(const uint8_t* entries) {
    for (int i = 0; i < 4; ++i) {
      part_[i] =
          _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries + 16 * i)));
    }
  }
  void look_up(const uint8_t* indices, uint8_t* values) const {
    for (int i = 0; i < kTableLanes; i += 32) {
      const __m256i index = _mm256_load_si256(reinterpret_cast<const __m256i*>(indices + i));
      _mm256_store_si256(reinterpret_cast<__m256i*>(values + i), pick(index));
    }
  }
  __m256i pick(__m256i index) const {
    const __m256i low = _mm256_and_si256(index, _mm256_set1_epi8(15));
    // A byte's sign chooses in a blend: bits 4 and 5 are moved there.
    const __m256i bit4 = _mm256_slli_epi16(index, 3), bit5 = _mm256_slli_epi16(index, 2);
    const __m256i first =
        _mm256_blendv_epi8(_mm256_shuffle_epi8(part_[0], low), _mm256_shuffle_epi8(part_[1], low), bit4);
    const __m256i last =
        _mm256_blendv_epi8(_mm256_shuffle_epi8(part_[2], low), _mm256_shuffle_epi8(part_[3], low), bit4);
    return _mm256_blendv_epi8(first, last, bit5);
  }

 private:
  __m256i part_[4];
};

/// 256 bytes as four tables of 64.
class ByteTable {
 public:
  explicit ByteTable(const uint8_t* entries)
      : part_{SmallByteTable(entries), SmallByteTable(entries + 64), SmallByteTable(entries + 128),
              SmallByteTable(entries + 192)} {}
  void look_up(const uint8_t* indices, uint8_t* values) const {
    for (int i = 0; i < kTableLanes; i += 32) {
      const __m256i index = _mm256_load_si256(reinterpret_cast<const __m256i*>(indices + i));
      const __m256i bit6 = _mm256_slli_epi16(index, 1);
      const __m256i low = _mm256_blendv_epi8(part_[0].pick(index), part_[1].pick(index), bit6);
      const __m256i high = _mm256_blendv_epi8(part_[2].pick(index), part_[3].pick(index), bit6);
      _mm256_store_si256(reinterpret_cast<__m256i*>(values + i), _mm256_blendv_epi8(low, high, index));
    }
  }

 private:
  SmallByteTable part_[4];
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
