// SPDX-License-Identifier: Apache-2.0
// Tables of bytes, looked up for 64 indices at once: in registers where the CPU can permute bytes, else in
// memory. Of an index only the bits that a table's size needs count, but it must be below 128 unless the
// table has 256 entries.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/host_device.h"

namespace scrd {
inline namespace SCRD_ISA {

constexpr int kTableLanes = 64;

#if defined(__AVX512VBMI__)

using Bytes = __m512i;
// With a mask of ones: GCC 12 warns of an uninitialised operand inside the plain intrinsics.
constexpr __mmask64 kAllBytes = ~0ull;

inline Bytes load_bytes(const uint8_t* from) { return _mm512_load_si512(from); }
inline void store_bytes(void* to, Bytes bytes) { _mm512_store_si512(to, bytes); }
inline Bytes high_halves(Bytes bytes) {
  return _mm512_and_si512(_mm512_maskz_srli_epi16(~0u, bytes, 4), _mm512_set1_epi8(15));
}

template <int kEntries>
class ByteTable;

template <>
class ByteTable<16> {
 public:
  explicit ByteTable(const uint8_t* entries)
      : entries_(_mm512_maskz_broadcast_i32x4(0xffff,
                                              _mm_loadu_si128(reinterpret_cast<const __m128i*>(entries)))) {}
  Bytes pick(Bytes index) const { return _mm512_maskz_shuffle_epi8(kAllBytes, entries_, index); }

 private:
  Bytes entries_;
};

template <>
class ByteTable<64> {
 public:
  explicit ByteTable(const uint8_t* entries) : entries_(_mm512_loadu_si512(entries)) {}
  Bytes pick(Bytes index) const { return _mm512_maskz_permutexvar_epi8(kAllBytes, index, entries_); }

 private:
  Bytes entries_;
};

template <>
class ByteTable<128> {
 public:
  explicit ByteTable(const uint8_t* entries)
      : low_(_mm512_loadu_si512(entries)), high_(_mm512_loadu_si512(entries + 64)) {}
  Bytes pick(Bytes index) const { return _mm512_permutex2var_epi8(low_, index, high_); }

 private:
  Bytes low_, high_;
};

template <>
class ByteTable<256> {
 public:
  explicit ByteTable(const uint8_t* entries) : low_(entries), high_(entries + 128) {}
  Bytes pick(Bytes index) const {
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low_.pick(index), high_.pick(index));
  }

 private:
  ByteTable<128> low_, high_;
};

#elif defined(__AVX2__)

using Bytes = __m256i;

inline Bytes load_bytes(const uint8_t* from) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
}
inline void store_bytes(void* to, Bytes bytes) { _mm256_store_si256(static_cast<__m256i*>(to), bytes); }
inline Bytes high_halves(Bytes bytes) {
  return _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15));
}

/// Two tables of half the size. A byte's sign chooses in a blend: the bit that tells the halves apart is
/// moved there.
template <int kEntries>
class ByteTable {
 public:
  explicit ByteTable(const uint8_t* entries) : low_(entries), high_(entries + kEntries / 2) {}
  Bytes pick(Bytes index) const {
    constexpr int kShift = kEntries == 128 ? 1 : kEntries == 64 ? 2 : 3;
    return _mm256_blendv_epi8(low_.pick(index), high_.pick(index), _mm256_slli_epi16(index, kShift));
  }

 private:
  ByteTable<kEntries / 2> low_, high_;
};

template <>
class ByteTable<16> {
 public:
  explicit ByteTable(const uint8_t* entries)
      : entries_(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries)))) {}
  Bytes pick(Bytes index) const { return _mm256_shuffle_epi8(entries_, index); }

 private:
  Bytes entries_;
};

/// More than all registers hold: the entries are fetched at every look-up.
template <>
class ByteTable<256> {
 public:
  explicit ByteTable(const uint8_t* entries) : entries_(entries) {}
  Bytes pick(Bytes index) const {
    const Bytes below = _mm256_and_si256(index, _mm256_set1_epi8(127)), bit6 = _mm256_slli_epi16(index, 1);
    const Bytes low = _mm256_blendv_epi8(quarter(0, below), quarter(1, below), bit6);
    return _mm256_blendv_epi8(low, _mm256_blendv_epi8(quarter(2, below), quarter(3, below), bit6), index);
  }

 private:
  Bytes quarter(int i, Bytes index) const { return ByteTable<64>(entries_ + 64 * i).pick(index); }
  const uint8_t* entries_;
};

#else

using Bytes = uint8_t;

inline Bytes load_bytes(const uint8_t* from) { return *from; }
inline void store_bytes(void* to, Bytes bytes) { memcpy(to, &bytes, 1); }
inline Bytes high_halves(Bytes bytes) { return static_cast<Bytes>(bytes >> 4); }

template <int kEntries>
class ByteTable {
 public:
  explicit ByteTable(const uint8_t* entries) : entries_(entries) {}
  Bytes pick(Bytes index) const {
    unsigned place = index % kEntries;
    asm("" : "+r"(place));  // else compilers mask indices in vectors, only to take those apart again
    return entries_[place];
  }

 private:
  const uint8_t* entries_;
};

#endif

/// `indices` and `values` are 64 bytes each, aligned to 64; `Byte` is uint8_t or int8_t.
template <int kEntries, typename Byte>
void look_up(const ByteTable<kEntries>& table, const uint8_t* indices, Byte* values) {
  constexpr int kStep = sizeof(Bytes);
#pragma GCC unroll 8
  for (int i = 0; i < kTableLanes; i += kStep) store_bytes(values + i, table.pick(load_bytes(indices + i)));
}

/// Of an index only the upper four bits count.
template <typename Byte>
void look_up_high(const ByteTable<16>& table, const uint8_t* indices, Byte* values) {
  constexpr int kStep = sizeof(Bytes);
#pragma GCC unroll 8
  for (int i = 0; i < kTableLanes; i += kStep) {
    store_bytes(values + i, table.pick(high_halves(load_bytes(indices + i))));
  }
}

}  // namespace SCRD_ISA
}  // namespace scrd
