// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "cosine_distances/cosine_distances_kernels.cuh"
#include "driver.h"

namespace {

using driver::Arguments;
using driver::Array;
using scrd::cosine::Maps;

/// The features of a test: `shape` says for each scale sizes (4), teacher's strides (4), student's strides
/// (4), whether rows (1), and where teacher and student begin in memory (2); `teacher` and `student` hold all
/// scales.
template <typename T>
struct Features {
  explicit Features(const Arguments& arguments)
      : teacher(arguments.array<T>("teacher")), student(arguments.array<T>("student")) {
    const Array<int64_t> shape = arguments.array<int64_t>("shape");
    constexpr size_t kNumbers = 15;
    for (size_t at = 0; at < shape.size(); at += kNumbers) {
      const int64_t* s = shape.data() + at;
      scales.push_back({teacher.data() + s[13],
                        student.data() + s[14],
                        s[0],
                        s[1],
                        s[2],
                        s[3],
                        {s[4], s[5], s[6], s[7]},
                        {s[8], s[9], s[10], s[11]},
                        s[12] != 0});
      pixels.push_back(total);
      total += s[0] * s[2] * s[3];
    }
  }
  int64_t count() const { return static_cast<int64_t>(scales.size()); }

  Array<T> teacher, student;
  std::vector<Maps> scales;
  std::vector<int64_t> pixels;  // where each scale's pixels begin among those of all
  int64_t total = 0;
};

template <typename T, typename A>
void distances(const Arguments& arguments) {
  const Features<T> features(arguments);
  const Array<A> out = arguments.empty<A>(static_cast<size_t>(features.total));
  std::vector<A*> scales;
  for (const int64_t begin : features.pixels) scales.push_back(out.data() + begin);
  scrd::cosine::launch_distances<T, A>(features.scales.data(), features.count(), scales.data(),
                                       arguments.number("eps"), nullptr);
  arguments.give(out);
}

/// Gives the student's gradients, or the teacher's where `of` says so; they lie in memory as the features do.
template <typename T, typename A>
void gradients(const Arguments& arguments) {
  const Features<T> features(arguments);
  const Array<A> grads = arguments.array<A>("grads");
  const Array<T> to_teacher = arguments.empty<T>(features.teacher.size()),
                 to_student = arguments.empty<T>(features.student.size());
  std::vector<const A*> behind;
  std::vector<void*> teachers, students;
  for (size_t k = 0; k < features.scales.size(); ++k) {
    const Maps& maps = features.scales[k];
    behind.push_back(grads.data() + features.pixels[k]);
    teachers.push_back(to_teacher.data() + (static_cast<const T*>(maps.teacher) - features.teacher.data()));
    students.push_back(to_student.data() + (static_cast<const T*>(maps.student) - features.student.data()));
  }
  const bool of_teacher = arguments.text("of") == "teacher";
  scrd::cosine::launch_gradients<T, A>(
      features.scales.data(), features.count(),
      {behind.data(), of_teacher ? teachers.data() : nullptr, students.data()}, arguments.number("eps"),
      nullptr);
  arguments.give(of_teacher ? to_teacher : to_student);
}

template <typename T, typename A>
void run_with(const Arguments& arguments) {
  arguments.has("grads") ? gradients<T, A>(arguments) : distances<T, A>(arguments);
}

}  // namespace

void driver::run(const Arguments& arguments) {
  const std::string& dtype = arguments.text("dtype");
  if (dtype == "float32") run_with<float, float>(arguments);
  if (dtype == "float64") run_with<double, double>(arguments);
  if (dtype == "float16") run_with<__half, float>(arguments);
  if (dtype == "bfloat16") run_with<__nv_bfloat16, float>(arguments);
}
