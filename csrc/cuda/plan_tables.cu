// Uploads the tables of a plan once for every device and size.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "plan/plan.h"
#include "plan_tables.cuh"
#include "tensor_tables.h"

namespace surm::cuda {
namespace {

const Plan& plan_of(int64_t size, bool padded) {
  static std::mutex mutex;
  static std::map<std::pair<int64_t, bool>, std::unique_ptr<const Plan>> plans;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<const Plan>& plan = plans[{size, padded}];
  if (plan == nullptr) {
    plan = std::make_unique<const Plan>(padded ? make_padded_plan(size, kTile, kGpuStages)
                                               : make_plan(size, kTile, kGpuStages));
  }
  return *plan;
}

// All twiddle factors in pairs, then the twist.
template <class Scalar>
std::vector<Complex<Scalar>> tables_of(const Plan& plan, DevicePlan<Scalar>& on_device) {
  const std::vector<Scalar> factors = twiddle_factors<Scalar>(plan, 1);
  const Scalar* of_stage = factors.data();
  std::vector<Complex<Scalar>> tables;
  for (const Stage& stage : plan.stages) {
    on_device.stages[on_device.stage_count++] = {stage.radix, static_cast<int>(stage.stride), Divisor(stage.stride),
                                                 static_cast<int>(tables.size() / 2)};
    const int64_t others = stage.radix - 1;
    for (int64_t k = 0; k < others; k += 2) {
      for (int64_t j = 0; j < stage.stride; ++j) {
        for (int64_t each = k; each < k + 2; ++each) {
          const Scalar* factor = of_stage + 2 * (j * others + std::min(each, others - 1));
          tables.push_back({factor[0], factor[1]});
        }
      }
    }
    of_stage += 2 * others * stage.stride;
  }
  for (int64_t j = 0; j < plan.size && !plan.embedded(); ++j) {
    const double angle = detail::kPi * static_cast<double>(j) / static_cast<double>(plan.size);
    tables.push_back({static_cast<Scalar>(std::cos(angle)), static_cast<Scalar>(std::sin(angle))});
  }
  return tables;
}

// Copies to new memory of the device, whether or not this thread captures a graph.
cudaError_t upload(const void* data, size_t bytes, void** copy) {
  const cudaError_t error = beside_capture([=] {
    cudaStream_t stream = nullptr;
    cudaError_t error = cudaMalloc(copy, bytes);
    if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error == cudaSuccess) {
      error = cudaMemcpyAsync(*copy, data, bytes, cudaMemcpyHostToDevice, stream);
      if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
      cudaStreamDestroy(stream);
    }
    if (error != cudaSuccess && *copy != nullptr) cudaFree(*copy);
    return error;
  });
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace

int64_t plan_length(int64_t size, bool padded) { return plan_of(size, padded).length; }

template <class Scalar>
const DevicePlan<Scalar>* device_plan(int64_t size, bool padded, int* error) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int64_t, bool>, std::unique_ptr<const DevicePlan<Scalar>>> plans;
  int device = 0;
  if ((*error = cudaGetDevice(&device)) != cudaSuccess) return nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<const DevicePlan<Scalar>>& known = plans[{device, size, padded}];
  if (known != nullptr) return known.get();

  const Plan& plan = plan_of(size, padded);
  if (plan.stages.size() > DevicePlan<Scalar>::kMostStages || plan.length > INT32_MAX / 64) {
    *error = kTooLarge;
    return nullptr;
  }
  auto fresh = std::make_unique<DevicePlan<Scalar>>();
  fresh->size = static_cast<int>(plan.size);
  fresh->length = static_cast<int>(plan.length);
  std::vector<Complex<Scalar>> tables = tables_of(plan, *fresh);
  const size_t twist = tables.size() - plan.size, tensor = tables.size();
  size_t of_tensor = 0;
  if constexpr (sizeof(Scalar) == 4) {
    for (int twisted = 0; twisted < 2 && !plan.embedded(); ++twisted) {
      const std::vector<Complex<float>> more = tensor_tables(size, twisted != 0);
      of_tensor = more.size();
      tables.insert(tables.end(), more.begin(), more.end());
    }
  }
  void* copy = nullptr;
  if (!tables.empty() && (*error = upload(tables.data(), tables.size() * sizeof(tables[0]), &copy)) != cudaSuccess) {
    return nullptr;
  }
  fresh->twiddles = static_cast<const TwiddlePair<Scalar>*>(copy);
  if (!plan.embedded()) fresh->twist = static_cast<const Complex<Scalar>*>(copy) + twist;
  for (int twisted = 0; twisted < 2 && of_tensor > 0; ++twisted) {
    fresh->tensor_tables[twisted] = static_cast<const Complex<Scalar>*>(copy) + tensor + twisted * of_tensor;
  }
  known = std::move(fresh);
  return known.get();
}

template const DevicePlan<float>* device_plan<float>(int64_t, bool, int*);
template const DevicePlan<double>* device_plan<double>(int64_t, bool, int*);

}  // namespace surm::cuda
