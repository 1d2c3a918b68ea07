// The spectrum of a circulant matrix as the products on the matrix unit take it.
#include "tensor_order.cuh"
#include "tensor_product.h"

namespace surm::cuda {
namespace {

// A spectrum in the order of the core's tables, times a power of two, whose inverse comes before it: large enough for
// what a spectrum without peaks makes of one value, small enough for all of them in one frequency
// (docs/gpu-kernels.md).
using TurnPair = TwiddlePair<float>;

struct TensorSpectrumTask {
  TensorOrder order;
  const Complex<float>* spectrum;
  TurnPair* to;
  int exponent;
};

constexpr int kSpectrumThreads = 512;

__global__ void __launch_bounds__(kSpectrumThreads) tensor_spectrum(const TensorSpectrumTask task) {
  const int length = task.order.plan.length, lane = threadIdx.x % kLanes;
  uint32_t most = 0;
  for (int i = threadIdx.x; i < length; i += kSpectrumThreads) {
    const Complex<float> value = task.spectrum[i];
    const uint32_t re = __float_as_uint(value.re) & 0x7fffffff, im = __float_as_uint(value.im) & 0x7fffffff;
    most = re > most ? re : most;
    most = im > most ? im : most;
  }
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, most, lanes);
    most = other > most ? other : most;
  }
  const Shared<uint32_t> of_warps = shared_memory<uint32_t>();
  if (lane == 0) of_warps[threadIdx.x / kLanes] = most;
  __syncthreads();
  for (int warp = 0; warp < kSpectrumThreads / kLanes; ++warp) {
    const uint32_t other = of_warps[warp];
    most = other > most ? other : most;
  }
  // Biased exponents of the power and its inverse, both of normal numbers.
  const int wanted = most == 0 ? 127 : 127 + 126 + task.exponent - static_cast<int>(most >> 23);
  const int bounded = wanted < 1 ? 1 : wanted > 253 ? 253 : wanted;
  const float factor = __uint_as_float(static_cast<uint32_t>(bounded) << 23);
  if (threadIdx.x == 0) {
    const float inverse = __uint_as_float(static_cast<uint32_t>(254 - bounded) << 23);
    task.to[0] = TurnPair{{inverse, 0}, {0, 0}};
  }
  for (int pair = threadIdx.x; pair < length / 2; pair += kSpectrumThreads) {
    const auto value = [&](int place) {
      const Complex<float> v = task.spectrum[task.order(place)];
      return Complex<float>{v.re * factor, v.im * factor};
    };
    task.to[1 + pair] = TurnPair{value(2 * pair), value(2 * pair + 1)};
  }
}

}  // namespace

int TensorProduct::make_spectrum(const Complex<float>* spectrum, void* to, void* stream) const {
  int error = 0;
  const DevicePlan<float>* plan = device_plan<float>(size, padded, &error);
  if (plan == nullptr) return error;
  constexpr int kMostLog2 = 6;
  int log2 = 0;
  while ((int64_t{1} << log2) < length) ++log2;
  const int exponent = (log2 / 2 < kMostLog2 ? log2 / 2 : kMostLog2) - log2;
  const TensorSpectrumTask task{TensorOrder(*plan), spectrum, static_cast<TurnPair*>(to), exponent};
  return launch(tensor_spectrum, dim3(1), kSpectrumThreads, kSpectrumThreads / kLanes * sizeof(uint32_t), stream, task);
}

}  // namespace surm::cuda
