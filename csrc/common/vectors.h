// SPDX-License-Identifier: Apache-2.0
// One register of floats for the instruction set at hand, and the smaller types that are read into it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "common/host_device.h"

// Always: a copy outside would be a weak symbol, of which the linker keeps one for all instruction sets.
#define SCRD_INLINE inline __attribute__((always_inline))

namespace scrd {
inline namespace SCRD_ISA {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

SCRD_INLINE float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

SCRD_INLINE uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

SCRD_INLINE float widen(float value) { return value; }
SCRD_INLINE double widen(double value) { return value; }
SCRD_INLINE float widen(BFloat16 value) { return from_bits(uint32_t{value.bits} << 16); }
SCRD_INLINE float widen(Half value) {
  const uint32_t magnitude = value.bits & 0x7fffu, sign = (value.bits & 0x8000u) << 16;
  if (magnitude >= 0x7c00) return from_bits(sign | 0x7f800000u | magnitude << 13);  // infinite, NaN
  // The exponents' origins differ by 112; subnormal numbers come out right too.
  return from_bits(sign | to_bits(from_bits(magnitude << 13) * 0x1p112f));
}

/// Rounds to the nearest, ties to even.
template <typename T, typename A>
SCRD_INLINE T narrow(A value) {
  return value;  // nothing to round
}
template <>
SCRD_INLINE BFloat16 narrow<BFloat16, float>(float value) {
  const uint32_t bits = to_bits(value);
  if (value != value) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
SCRD_INLINE Half narrow<Half, float>(float value) {
  const uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t result = 0x7e00;  // NaN
  if (magnitude < 0x38800000) {
    result =
        to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);  // subnormal: multiples of 2^-24, as below 1
  } else if (magnitude < 0x477ff000) {
    result = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  } else if (magnitude <= 0x7f800000) {
    result = 0x7c00;
  }
  return {static_cast<uint16_t>(sign | result)};
}

#if defined(__AVX2__)

/// A register of at most eight, where `Floats` may be larger.
struct ShortFloats {
  using Scalar = float;
  static constexpr int kLanes = 8;
  __m256 value;

  SCRD_INLINE static ShortFloats all(float x) { return {_mm256_set1_ps(x)}; }
  SCRD_INLINE static ShortFloats load(const float* from) { return {_mm256_loadu_ps(from)}; }
  SCRD_INLINE static ShortFloats load(const Half* from) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
  }
  SCRD_INLINE static ShortFloats load(const int8_t* from) {
    const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    return {_mm256_cvtepi32_ps(wide)};
  }
  SCRD_INLINE void store(float* to) const { _mm256_storeu_ps(to, value); }
  SCRD_INLINE void store_as(float* to) const { store(to); }
  SCRD_INLINE void store_as(Half* to) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
};

/// Of 16 numbers, those at even places and those at odd ones: a word of two is a float after a shift or a
/// mask.
SCRD_INLINE void load_twins(const BFloat16* from, ShortFloats& even, ShortFloats& odd) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  even.value = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  odd.value = _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

/// Rounded to bfloat16, in the upper halves; the lower ones are not cleared.
SCRD_INLINE __m256i round_words(__m256 value) {
  const __m256i bits = _mm256_castps_si256(value), nan = _mm256_set1_epi32(0x7fc00000);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  return _mm256_blendv_epi8(rounded, nan, _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q)));
}
SCRD_INLINE void store_twins(BFloat16* to, ShortFloats even, ShortFloats odd) {
  const __m256i low = _mm256_srli_epi32(round_words(even.value), 16);
  const __m256i high =
      _mm256_and_si256(round_words(odd.value), _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_or_si256(low, high));
}

SCRD_INLINE ShortFloats operator+(ShortFloats a, ShortFloats b) { return {a.value + b.value}; }
SCRD_INLINE ShortFloats multiply_add(ShortFloats a, ShortFloats b, ShortFloats c) {
  return {_mm256_fmadd_ps(a.value, b.value, c.value)};
}

#endif

#if defined(__AVX512F__)

struct Floats {
  using Scalar = float;
  static constexpr int kLanes = 16;
  static constexpr __mmask16 kAll =
      0xffff;  // GCC 12 warns of an uninitialised operand inside plain intrinsics
  __m512 value;

  SCRD_INLINE static Floats all(float x) { return {_mm512_set1_ps(x)}; }
  SCRD_INLINE static Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
  SCRD_INLINE static Floats load(const Half* from) {
    return {_mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
  }
  SCRD_INLINE static Floats load(const int8_t* from) {
    const __m512i wide =
        _mm512_maskz_cvtepi8_epi32(kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return {_mm512_maskz_cvtepi32_ps(kAll, wide)};
  }
  SCRD_INLINE void store(float* to) const { _mm512_storeu_ps(to, value); }
  SCRD_INLINE void store_as(float* to) const { store(to); }
  SCRD_INLINE void store_as(Half* to) const {
    const __m256i halves = _mm512_maskz_cvtps_ph(kAll, value, _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
  }
};

/// Of 32 numbers, those at even places and those at odd ones: a word of two is a float after a shift or a
/// mask.
SCRD_INLINE void load_twins(const BFloat16* from, Floats& even, Floats& odd) {
  const __m512i words = _mm512_loadu_si512(from), high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  even.value = _mm512_castsi512_ps(_mm512_maskz_slli_epi32(Floats::kAll, words, 16));
  odd.value = _mm512_castsi512_ps(_mm512_and_si512(words, high));
}

/// Rounded to bfloat16, in the upper halves; the lower ones are not cleared.
SCRD_INLINE __m512i round_words(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value), nan = _mm512_set1_epi32(0x7fc00000);
  const __m512i odd = _mm512_and_si512(_mm512_maskz_srli_epi32(Floats::kAll, bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), nan);
}
SCRD_INLINE void store_twins(BFloat16* to, Floats even, Floats odd) {
  const __m512i low = _mm512_maskz_srli_epi32(Floats::kAll, round_words(even.value), 16);
  const __m512i high =
      _mm512_and_si512(round_words(odd.value), _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  _mm512_storeu_si512(to, _mm512_or_si512(low, high));
}

SCRD_INLINE Floats operator+(Floats a, Floats b) { return {a.value + b.value}; }
SCRD_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
  return {_mm512_fmadd_ps(a.value, b.value, c.value)};
}

#elif defined(__AVX2__)

using Floats = ShortFloats;

#else

/// Four lanes in the compiler's own notation: SSE2, NEON, or whatever there is.
struct Floats {
  using Scalar = float;
  static constexpr int kLanes = 4;
  typedef float Register __attribute__((vector_size(16)));
  Register value;

  SCRD_INLINE static Floats all(float x) { return {Register{x, x, x, x}}; }
  template <typename T>
  SCRD_INLINE static Floats load(const T* from) {
    return {Register{widen(from[0]), widen(from[1]), widen(from[2]), widen(from[3])}};
  }
  SCRD_INLINE static Floats load(const int8_t* from) {
#if defined(__SSE2__)  // compilers do not find this by themselves
    int32_t narrow;
    memcpy(&narrow, from, sizeof narrow);
    const __m128i bytes = _mm_cvtsi32_si128(narrow), twice = _mm_unpacklo_epi8(bytes, bytes);
    return {_mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(twice, twice), 24))};
#else
    return {Register{static_cast<float>(from[0]), static_cast<float>(from[1]), static_cast<float>(from[2]),
                     static_cast<float>(from[3])}};
#endif
  }
  SCRD_INLINE void store(float* to) const { memcpy(to, &value, sizeof value); }
  template <typename T>
  SCRD_INLINE void store_as(T* to) const {
    for (int i = 0; i < kLanes; ++i) to[i] = narrow<T>(value[i]);
  }
};

SCRD_INLINE void store_twins(BFloat16* to, Floats even, Floats odd) {
  for (int i = 0; i < Floats::kLanes; ++i) {
    to[2 * i] = narrow<BFloat16>(even.value[i]);
    to[2 * i + 1] = narrow<BFloat16>(odd.value[i]);
  }
}

SCRD_INLINE void load_twins(const BFloat16* from, Floats& even, Floats& odd) {
  even.value = Floats::Register{widen(from[0]), widen(from[2]), widen(from[4]), widen(from[6])};
  odd.value = Floats::Register{widen(from[1]), widen(from[3]), widen(from[5]), widen(from[7])};
}

SCRD_INLINE Floats operator+(Floats a, Floats b) { return {a.value + b.value}; }
SCRD_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return {a.value * b.value + c.value}; }

using ShortFloats = Floats;

#endif

/// One lane, for what is left beside whole registers; and float64, which is there to check gradients.
template <typename A>
struct One {
  using Scalar = A;
  static constexpr int kLanes = 1;
  A value;

  SCRD_INLINE static One all(A x) { return {x}; }
  template <typename T>
  SCRD_INLINE static One load(const T* from) {
    return {widen(*from)};
  }
  SCRD_INLINE void store(A* to) const { *to = value; }
  template <typename T>
  SCRD_INLINE void store_as(T* to) const {
    *to = narrow<T>(value);
  }
  SCRD_INLINE static One load_sums(const A* from) { return {*from}; }
  SCRD_INLINE void store_sums(A* to) const { *to = value; }
};

template <typename A>
SCRD_INLINE One<A> operator+(One<A> a, One<A> b) {
  return {a.value + b.value};
}
template <typename A>
SCRD_INLINE One<A> multiply_add(One<A> a, One<A> b, One<A> c) {
  return {multiply_add(a.value, b.value, c.value)};
}

/// Two registers of numbers that lie side by side in memory, in an order that is the type's own; or two such
/// pairs, and so on. No array: in one with a running index the compiler would keep sums in memory.
template <typename V>
struct Twins {
  using Scalar = typename V::Scalar;
  static constexpr int kLanes = 2 * V::kLanes;
  V first, second;

  SCRD_INLINE static Twins all(Scalar x) { return {V::all(x), V::all(x)}; }
  template <typename T>
  SCRD_INLINE static Twins load(const T* from) {
    return {V::load(from), V::load(from + V::kLanes)};
  }
  SCRD_INLINE static Twins load(const BFloat16* from) {
    Twins twins;
    load_twins(from, twins.first, twins.second);
    return twins;
  }
  /// Rounded to the type, in the order of memory.
  template <typename T>
  SCRD_INLINE void store_as(T* to) const {
    first.store_as(to);
    second.store_as(to + V::kLanes);
  }
  SCRD_INLINE void store_as(BFloat16* to) const { store_twins(to, first, second); }
  /// From and to numbers in the registers' order.
  SCRD_INLINE static Twins load_sums(const Scalar* from) {
    return {V::load(from), V::load(from + V::kLanes)};
  }
  SCRD_INLINE void store_sums(Scalar* to) const {
    first.store(to);
    second.store(to + V::kLanes);
  }
};

template <typename V>
SCRD_INLINE void load_twins(const BFloat16* from, V& first, V& second) {
  first = V::load(from);
  second = V::load(from + V::kLanes);
}

template <typename V>
SCRD_INLINE void store_twins(BFloat16* to, const V& first, const V& second) {
  first.store_as(to);
  second.store_as(to + V::kLanes);
}

template <typename V>
SCRD_INLINE Twins<V> operator+(const Twins<V>& a, const Twins<V>& b) {
  return {a.first + b.first, a.second + b.second};
}

template <typename V>
SCRD_INLINE Twins<V> multiply_add(const Twins<V>& a, const Twins<V>& b, const Twins<V>& c) {
  return {multiply_add(a.first, b.first, c.first), multiply_add(a.second, b.second, c.second)};
}

/// Adds the upper half to the lower one, until one number is left.
template <typename A>
SCRD_INLINE A sum_of(One<A> one) {
  return one.value;
}
#if defined(__AVX2__)
SCRD_INLINE float sum_of(__m256 lanes) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
SCRD_INLINE float sum_of(Floats floats) {
#if defined(__AVX512F__)
  const __m256 upper = _mm512_maskz_extractf32x8_ps(0xff, floats.value, 1);
  return sum_of(_mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, floats.value, 0), upper));
#else
  return sum_of(floats.value);
#endif
}
#else
SCRD_INLINE float sum_of(Floats floats) {
  float lanes[Floats::kLanes];
  floats.store(lanes);
#pragma GCC unroll 4
  for (int half = Floats::kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}
#endif
template <typename V>
SCRD_INLINE typename V::Scalar sum_of(const Twins<V>& twins) {
  return sum_of(twins.first + twins.second);
}

/// As many of V as have `kWanted` lanes together.
template <typename V, int kWanted, bool kEnough = (V::kLanes >= kWanted)>
struct Wide {
  using Type = typename Wide<Twins<V>, kWanted>::Type;
};
template <typename V, int kWanted>
struct Wide<V, kWanted, true> {
  using Type = V;
};

/// What values of type T are summed in.
template <typename T>
struct SumsOf {
  using Vector = Floats;
  static constexpr bool kInterleaved = false;
};
template <>
struct SumsOf<double> {
  using Vector = One<double>;
  static constexpr bool kInterleaved = false;
};
template <>
struct SumsOf<BFloat16> {
  using Vector = Floats;
  static constexpr bool kInterleaved = true;  // in a pair: even places first, then odd ones
};

}  // namespace SCRD_ISA
}  // namespace scrd
