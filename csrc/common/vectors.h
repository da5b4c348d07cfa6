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

namespace scrd {
inline namespace SCRD_ISA {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return from_bits(uint32_t{value.bits} << 16); }
inline float widen(Half value) {
  const uint32_t magnitude = value.bits & 0x7fffu, sign = (value.bits & 0x8000u) << 16;
  if (magnitude >= 0x7c00) return from_bits(sign | 0x7f800000u | magnitude << 13);  // infinite, NaN
  // The exponents' origins differ by 112; subnormal numbers come out right too.
  return from_bits(sign | to_bits(from_bits(magnitude << 13) * 0x1p112f));
}

/// Rounds to the nearest, ties to even.
template <typename T, typename A>
T narrow(A value) {
  return value;  // nothing to round
}
template <>
inline BFloat16 narrow<BFloat16, float>(float value) {
  const uint32_t bits = to_bits(value);
  if (value != value) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Half narrow<Half, float>(float value) {
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

#if defined(__AVX512F__)

struct Floats {
  using Scalar = float;
  static constexpr int kLanes = 16;
  static constexpr __mmask16 kAll =
      0xffff;  // GCC 12 warns of an uninitialised operand inside plain intrinsics
  __m512 value;

  static Floats all(float x) { return {_mm512_set1_ps(x)}; }
  static Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static Floats load(const BFloat16* from) {
    const __m512i wide =
        _mm512_maskz_cvtepu16_epi32(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return {_mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAll, wide, 16))};
  }
  static Floats load(const Half* from) {
    return {_mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
  }
  static Floats load(const int8_t* from) {
    const __m512i wide =
        _mm512_maskz_cvtepi8_epi32(kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return {_mm512_maskz_cvtepi32_ps(kAll, wide)};
  }
  void store(float* to) const { _mm512_storeu_ps(to, value); }
};

inline Floats operator+(Floats a, Floats b) { return {a.value + b.value}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return {_mm512_fmadd_ps(a.value, b.value, c.value)};
}

#elif defined(__AVX2__)

struct Floats {
  using Scalar = float;
  static constexpr int kLanes = 8;
  __m256 value;

  static Floats all(float x) { return {_mm256_set1_ps(x)}; }
  static Floats load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static Floats load(const BFloat16* from) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  static Floats load(const Half* from) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
  }
  static Floats load(const int8_t* from) {
    const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    return {_mm256_cvtepi32_ps(wide)};
  }
  void store(float* to) const { _mm256_storeu_ps(to, value); }
};

inline Floats operator+(Floats a, Floats b) { return {a.value + b.value}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.value, b.value, c.value)};
}

#else

/// Four lanes in the compiler's own notation: SSE2, NEON, or whatever there is.
struct Floats {
  using Scalar = float;
  static constexpr int kLanes = 4;
  typedef float Register __attribute__((vector_size(16)));
  Register value;

  static Floats all(float x) { return {Register{x, x, x, x}}; }
  template <typename T>
  static Floats load(const T* from) {
    return {Register{widen(from[0]), widen(from[1]), widen(from[2]), widen(from[3])}};
  }
  static Floats load(const int8_t* from) {
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
  void store(float* to) const { memcpy(to, &value, sizeof value); }
};

inline Floats operator+(Floats a, Floats b) { return {a.value + b.value}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return {a.value * b.value + c.value}; }

#endif

inline double multiply_add(double a, double b, double c) { return a * b + c; }

/// One lane, for what is left beside whole registers; and float64, which is there to check gradients.
template <typename A>
struct One {
  using Scalar = A;
  static constexpr int kLanes = 1;
  A value;

  static One all(A x) { return {x}; }
  template <typename T>
  static One load(const T* from) {
    return {widen(*from)};
  }
  void store(A* to) const { *to = value; }
};

template <typename A>
One<A> operator+(One<A> a, One<A> b) {
  return {a.value + b.value};
}
template <typename A>
One<A> multiply_add(One<A> a, One<A> b, One<A> c) {
  return {multiply_add(a.value, b.value, c.value)};
}

/// What values of type T are summed in.
template <typename T>
struct VectorOf {
  using Type = Floats;
};
template <>
struct VectorOf<double> {
  using Type = One<double>;
};

}  // namespace SCRD_ISA
}  // namespace scrd
