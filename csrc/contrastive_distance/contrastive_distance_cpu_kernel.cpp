// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, with SCRD_ISA as its name. A run's values are lanes of 16 or 32 sums
// side by side, joined in a tree.
#include "common/vectors.h"
#include "contrastive_distance/contrastive_distance_cpu.h"

namespace scrd::contrastive::SCRD_ISA {
namespace {

constexpr int kAhead = 1024;  // bytes that are asked for before they are needed
constexpr int kLanes = Floats::kLanes > 8 ? 32 : 16;

template <typename T>
using Lanes = typename Wide<typename SumsOf<T>::Vector, kLanes>::Type;

template <typename T>
const T* at(const void* data, int64_t stride, const Run& run) {
  return static_cast<const T*>(data) + run.sample * stride + run.first;
}

/// The values of a run from `first` on, with zeros for what is missing.
template <typename T>
struct Tail {
  T values[kLanes] = {};
  Tail(const T* from, int64_t first, int64_t count) {
    for (int64_t i = first; i < count; ++i) values[i - first] = from[i];
  }
};

template <typename T, bool kNoisy>
void sum_run(const T* clean, const T* noisy, const T* student, int64_t count, double* dots) {
  using L = Lanes<T>;
  L cs = L::all(0), ns = L::all(0), cc = L::all(0), nn = L::all(0), ss = L::all(0);
  const auto add = [&](const T* c, const T* n, const T* s) {
    const L student_part = L::load(s), clean_part = L::load(c);
    ss = multiply_add(student_part, student_part, ss);
    cs = multiply_add(clean_part, student_part, cs);
    cc = multiply_add(clean_part, clean_part, cc);
    if constexpr (kNoisy) {
      const L noisy_part = L::load(n);
      ns = multiply_add(noisy_part, student_part, ns);
      nn = multiply_add(noisy_part, noisy_part, nn);
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    __builtin_prefetch(clean + i + kAhead / sizeof(T));
    if constexpr (kNoisy) __builtin_prefetch(noisy + i + kAhead / sizeof(T));
    __builtin_prefetch(student + i + kAhead / sizeof(T));
    add(clean + i, kNoisy ? noisy + i : nullptr, student + i);
  }
  if (i < count) {
    const Tail<T> c(clean, i, count), n(noisy, i, kNoisy ? count : i), s(student, i, count);
    add(c.values, n.values, s.values);
  }
  dots[0] = sum_of(cs);
  dots[1] = sum_of(ns);
  dots[2] = sum_of(cc);
  dots[3] = sum_of(nn);
  dots[4] = sum_of(ss);
}

template <typename T>
void sums(const Maps& maps, const Run& run, double* dots) {
  const T* clean = at<T>(maps.clean, maps.clean_stride, run);
  const T* student = at<T>(maps.student, maps.student_stride, run);
  if (maps.noisy == nullptr) {
    sum_run<T, false>(clean, nullptr, student, run.count, dots);
  } else {
    sum_run<T, true>(clean, at<T>(maps.noisy, maps.noisy_stride, run), student, run.count, dots);
  }
}

/// to = a x + b y + c z, of which the last may be missing.
template <typename T, bool kThree, typename A>
void combine(A a, const T* x, A b, const T* y, A c, const T* z, int64_t count, T* to) {
  using L = Lanes<T>;
  const L wide_a = L::all(a), wide_b = L::all(b), wide_c = L::all(c);
  const auto step = [&](const T* from_x, const T* from_y, const T* from_z, T* into) {
    L sum = multiply_add(wide_b, L::load(from_y), multiply_add(wide_a, L::load(from_x), L::all(0)));
    if constexpr (kThree) sum = multiply_add(wide_c, L::load(from_z), sum);
    sum.store_as(into);
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    __builtin_prefetch(x + i + kAhead / sizeof(T));
    __builtin_prefetch(y + i + kAhead / sizeof(T));
    if constexpr (kThree) __builtin_prefetch(z + i + kAhead / sizeof(T));
    step(x + i, y + i, kThree ? z + i : nullptr, to + i);
  }
  if (i < count) {
    const Tail<T> last_x(x, i, count), last_y(y, i, count), last_z(z, i, kThree ? count : i);
    T results[kLanes];
    step(last_x.values, last_y.values, last_z.values, results);
    for (int64_t j = i; j < count; ++j) to[j] = results[j - i];
  }
}

template <typename T>
T* into(void* gradients, const Maps& maps, const Run& run) {
  return static_cast<T*>(gradients) + run.sample * maps.values + run.first;
}

template <typename T>
void gradients(const Maps& maps, const Run& run, const Slopes<double>& slopes, const Gradients& wanted) {
  using A = typename SumsOf<T>::Vector::Scalar;
  const auto as = [](double x) { return static_cast<A>(x); };
  const T* clean = at<T>(maps.clean, maps.clean_stride, run);
  const T* student = at<T>(maps.student, maps.student_stride, run);
  const T* noisy = maps.noisy == nullptr ? nullptr : at<T>(maps.noisy, maps.noisy_stride, run);
  const auto into_student = into<T>(wanted.to_student, maps, run);
  const A from_clean = as(slopes.student_clean), own = as(slopes.student_own);
  if (noisy == nullptr) {
    combine<T, false>(own, student, from_clean, clean, A(0), noisy, run.count, into_student);
  } else {
    combine<T, true>(own, student, from_clean, clean, as(slopes.student_noisy), noisy, run.count,
                     into_student);
  }
  if (wanted.to_clean != nullptr) {
    combine<T, false>(as(slopes.clean_own), clean, as(slopes.clean_student), student, A(0), clean, run.count,
                      into<T>(wanted.to_clean, maps, run));
  }
  if (wanted.to_noisy != nullptr) {
    combine<T, false>(as(slopes.noisy_own), noisy, as(slopes.noisy_student), student, A(0), noisy, run.count,
                      into<T>(wanted.to_noisy, maps, run));
  }
}

template <typename T>
constexpr TypedKernels kernels_of() {
  return {sums<T>, gradients<T>};
}

}  // namespace

extern const CpuKernels kernels = {kernels_of<float>(), kernels_of<double>(), kernels_of<Half>(),
                                   kernels_of<BFloat16>()};

}  // namespace scrd::contrastive::SCRD_ISA
