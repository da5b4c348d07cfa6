// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "common/cuda.h"
#include "synthesize_anomalies/synthesize_anomalies_binding.h"
#include "synthesize_anomalies/synthesize_anomalies_kernels.cuh"

namespace scrd::anomalies {
namespace {

template <typename T>
void run(const Tensor& images, const Task& task, cudaStream_t stream) {
  launch_synthesize_anomalies(task.variant, view_images<T>(images), task.boxes.const_data_ptr<int32_t>(),
                              task.seeds.const_data_ptr<int64_t>(), task.strength, task.std_data(),
                              task.fractal, stream);
}

void synthesize_anomalies_(const Tensor& images, const Tensor& boxes, const Tensor& seeds, double strength,
                           const std::optional<Tensor>& std, int64_t octaves, double persistence,
                           double frequency, const std::string& variant) {
  const CudaLaunch cuda(images);
  const Task task =
      make_task(images, boxes, seeds, strength, std, {octaves, persistence, frequency}, variant);
  if (images.numel() == 0) return;
  switch (images.scalar_type()) {
    case ScalarType::Float:
      run<float>(images, task, cuda.stream());
      break;
    case ScalarType::Double:
      run<double>(images, task, cuda.stream());
      break;
    case ScalarType::Half:
      run<__half>(images, task, cuda.stream());
      break;
    case ScalarType::BFloat16:
      run<__nv_bfloat16>(images, task, cuda.stream());
      break;
    default:
      STD_TORCH_CHECK(false, "images must be float32, float16, bfloat16 or float64");
  }
  cuda.check();
}

Tensor synthesize_anomalies(const Tensor& images, const Tensor& boxes, const Tensor& seeds, double strength,
                            const std::optional<Tensor>& std, int64_t octaves, double persistence,
                            double frequency, const std::string& variant) {
  const CudaLaunch cuda(images);
  Tensor result = torch::stable::clone(images);
  synthesize_anomalies_(result, boxes, seeds, strength, std, octaves, persistence, frequency, variant);
  return result;
}

}  // namespace
}  // namespace scrd::anomalies

STABLE_TORCH_LIBRARY_IMPL(scrd_fast, CUDA, m) {
  m.impl("synthesize_anomalies", TORCH_BOX(&scrd::anomalies::synthesize_anomalies));
  m.impl("synthesize_anomalies_", TORCH_BOX(&scrd::anomalies::synthesize_anomalies_));
}
