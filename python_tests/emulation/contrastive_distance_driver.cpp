// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "contrastive_distance/contrastive_distance_kernels.cuh"
#include "driver.h"

namespace {

using driver::Arguments;
using driver::Array;
using scrd::contrastive::kDots;
using scrd::contrastive::Maps;
using scrd::contrastive::Numbers;

/// The maps of a test: `shape` says for each scale samples, values, the three strides of samples, and where
/// clean, noisy and student begin in memory; `clean`, `noisy` and `student` hold all scales. Without `noisy`
/// there is none.
template <typename T>
struct Inputs {
  explicit Inputs(const Arguments& arguments)
      : clean(arguments.array<T>("clean")), student(arguments.array<T>("student")) {
    const bool has_noisy = arguments.has("noisy");
    if (has_noisy) noisy = arguments.array<T>("noisy");
    const Array<int64_t> shape = arguments.array<int64_t>("shape");
    constexpr size_t kNumbers = 8;
    for (size_t at = 0; at < shape.size(); at += kNumbers) {
      const int64_t* s = shape.data() + at;
      maps.push_back({clean.data() + s[5], has_noisy ? noisy.data() + s[6] : nullptr, student.data() + s[7],
                      s[0], s[1], s[2], s[3], s[4]});
      numbers.push_back(static_cast<int64_t>(numbers.size()));
      values.push_back(total);
      total += s[0] * s[1];
    }
  }
  int64_t count() const { return static_cast<int64_t>(maps.size()); }
  int64_t items() const { return maps[0].samples * count(); }
  bool has_noisy() const { return maps[0].noisy != nullptr; }

  Array<T> clean, noisy, student;
  std::vector<Maps> maps;
  std::vector<int64_t> numbers, values;  // where each scale's values begin among those of all
  int64_t total = 0;
};

/// Gives clean distances, noisy distances and dots, one after the other.
template <typename T, typename A>
void distances(const Arguments& arguments) {
  const Inputs<T> inputs(arguments);
  std::vector<Array<A>> partial;
  std::vector<A*> pointers;
  for (const Maps& maps : inputs.maps) {
    partial.push_back(arguments.empty<A>(static_cast<size_t>(maps.samples * maps.chunks() * kDots)));
    pointers.push_back(partial.back().data());
  }
  const int64_t items = inputs.items(), of_noisy = inputs.has_noisy() ? items : 0;
  const Array<A> out = arguments.empty<A>(static_cast<size_t>(items + of_noisy + items * kDots));
  const Numbers<A, A> to{out.data(), inputs.has_noisy() ? out.data() + items : nullptr,
                         out.data() + items + of_noisy, inputs.count()};
  scrd::contrastive::launch_sums<T, A>(inputs.maps.data(), inputs.numbers.data(), inputs.count(),
                                       pointers.data(), nullptr);
  scrd::contrastive::launch_finish<A>(inputs.maps.data(), inputs.numbers.data(), inputs.count(),
                                      pointers.data(), arguments.number("eps"), to, nullptr);
  arguments.give(out);
}

/// Gives the gradients of all scales with respect to clean, noisy or student, as `of` says.
template <typename T, typename A>
void gradients(const Arguments& arguments) {
  const Inputs<T> inputs(arguments);
  const std::string& of = arguments.text("of");
  const Array<A> clean = arguments.array<A>("grad_clean"), dots = arguments.array<A>("dots");
  Array<A> noisy;
  if (inputs.has_noisy()) noisy = arguments.array<A>("grad_noisy");
  const Array<T> out = arguments.empty<T>(static_cast<size_t>(inputs.total)),
                 own = arguments.empty<T>(static_cast<size_t>(inputs.total));
  std::vector<void*> wanted, students;
  for (const int64_t begin : inputs.values) {
    wanted.push_back(out.data() + begin);
    students.push_back(of == "student" ? out.data() + begin : own.data() + begin);
  }
  const Numbers<const A, const A> from{clean.data(), inputs.has_noisy() ? noisy.data() : nullptr, dots.data(),
                                       inputs.count()};
  scrd::contrastive::launch_gradients<T, A>(inputs.maps.data(), inputs.numbers.data(), inputs.count(),
                                            {nullptr, of == "clean" ? wanted.data() : nullptr,
                                             of == "noisy" ? wanted.data() : nullptr, students.data()},
                                            arguments.number("eps"), from, nullptr);
  arguments.give(out);
}

template <typename T, typename A>
void run_with(const Arguments& arguments) {
  arguments.has("dots") ? gradients<T, A>(arguments) : distances<T, A>(arguments);
}

}  // namespace

void driver::run(const Arguments& arguments) {
  const std::string& dtype = arguments.text("dtype");
  if (dtype == "float32") run_with<float, float>(arguments);
  if (dtype == "float64") run_with<double, double>(arguments);
  if (dtype == "float16") run_with<__half, float>(arguments);
  if (dtype == "bfloat16") run_with<__nv_bfloat16, float>(arguments);
}
