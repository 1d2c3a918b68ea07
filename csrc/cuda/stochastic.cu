// Sums of two matrices rounded stochastically, and the keys of rounding: they never leave the device, so that nobody
// waits for the numbers that they follow from.
#include <algorithm>

#include "matrices.cuh"
#include "stochastic.h"
#include "stochastic_row.cuh"

namespace surm::cuda {
namespace {

// ---- sums -----------------------------------------------------------------------------------------------------------

constexpr int kThreads = 256;

// Every thread has a few neighbours of a row. The weight may be out: they are read before they are written.
template <class Weight, class Addend, class Out, int kCount>
__global__ void __launch_bounds__(kThreads)
    stochastic_sum_kernel(int64_t rows, int64_t columns, Matrix<const Weight> weight, Matrix<const Addend> addend,
                          Matrix<Out> out, const uint64_t* __restrict__ key) {
  const int64_t across = columns / kCount, item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = item / across, column = item % across * kCount;
  if (row >= rows) return;
  Weight before[kCount];
  Addend more[kCount];
  Out sums[kCount];
  load_neighbours<kCount>(weight.data + row * weight.stride + column, before);
  load_neighbours<kCount>(addend.data + row * addend.stride + column, more);
  const StochasticRow of_row(key, row);
  SURM_UNROLL
  for (int e = 0; e < kCount; ++e) sums[e] = of_row.rounded<Out>(widened(before[e]) + widened(more[e]), column + e);
  store_neighbours<kCount>(sums, out.data + row * out.stride + column);
}

template <class Weight, class Addend, class Out>
int sum(int64_t rows, int64_t columns, const Merge& merge, const void* addend_data, int64_t addend_stride,
        void* stream) {
  constexpr int kCount = 16 / sizeof(Out);
  const Matrix<const Weight> weight{static_cast<const Weight*>(merge.weight), merge.weight_stride};
  const Matrix<const Addend> addend{static_cast<const Addend*>(addend_data), addend_stride};
  const Matrix<Out> out{static_cast<Out*>(merge.out), merge.out_stride};
  const bool whole =
      columns % kCount == 0 && aligned(weight, kCount) && aligned(addend, kCount) && aligned(out, kCount);
  const int64_t blocks = divide_up(rows * (columns / (whole ? kCount : 1)), kThreads);
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  return launch(
      whole ? stochastic_sum_kernel<Weight, Addend, Out, kCount> : stochastic_sum_kernel<Weight, Addend, Out, 1>,
      dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, rows, columns, weight, addend, out, merge.key);
}

// ---- keys -----------------------------------------------------------------------------------------------------------

constexpr int kKeyThreads = 512, kMostNumbers = 8;

struct KeyTask {
  Numbers numbers[kMostNumbers];
  int count;
  uint64_t seed, place;  // place: of the first number
  bool first, last;      // of the launches for a key, each of which adds to the sum that is left in its place
  uint64_t* key;
};

__device__ int64_t bits_of(const Numbers& numbers, int64_t i) {
  if (numbers.bytes == 8) return static_cast<const int64_t*>(numbers.data)[i];
  if (numbers.bytes == 4) return static_cast<const int32_t*>(numbers.data)[i];
  return static_cast<const int16_t*>(numbers.data)[i];
}

__global__ void __launch_bounds__(kKeyThreads) rounding_key_kernel(const KeyTask task) {
  uint64_t sum = 0, place = task.place;
  for (int each = 0; each < task.count; ++each) {
    const Numbers& numbers = task.numbers[each];
    for (int64_t i = threadIdx.x; i < numbers.count; i += kKeyThreads) {
      sum += hash_of_number(bits_of(numbers, i), place + i);
    }
    place += numbers.count;
  }
  const Shared<uint64_t> sums = shared_memory<uint64_t>();
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kKeyThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) {
      sum += sums[threadIdx.x + half];
      sums[threadIdx.x] = sum;
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  if (!task.first) sum += *task.key;
  *task.key = task.last ? key_of(task.seed, sum) : sum;
}

}  // namespace
}  // namespace surm::cuda

extern "C" int surm_cuda_stochastic_sum(int64_t rows, int64_t columns, const surm::Merge* merge, const void* addend,
                                        int64_t addend_stride, bool wide, void* stream) {
  using namespace surm::cuda;
  return with_storage(merge->out_type, [&](auto out_tag) -> int {
    using Out = decltype(out_tag);
    if constexpr (sizeof(Out) == 2) {
      const auto run = [&](auto weight_tag) {
        using Weight = decltype(weight_tag);
        return wide ? sum<Weight, float, Out>(rows, columns, *merge, addend, addend_stride, stream)
                    : sum<Weight, Out, Out>(rows, columns, *merge, addend, addend_stride, stream);
      };
      return merge->weight_type == surm::StorageType::kFloat32 ? run(float{}) : run(Out{});
    } else {
      return cudaErrorInvalidValue;
    }
  });
}

extern "C" int surm_cuda_rounding_key(const surm::Numbers* numbers, int count, uint64_t seed, uint64_t* key,
                                      void* stream) {
  using namespace surm::cuda;
  KeyTask task{};
  task.seed = seed;
  task.first = true;
  task.key = key;
  for (int begin = 0; begin < count; begin += task.count) {
    task.count = std::min(kMostNumbers, count - begin);
    task.last = begin + task.count == count;
    std::copy_n(numbers + begin, task.count, task.numbers);
    const int error = launch(rounding_key_kernel, dim3(1), kKeyThreads, kKeyThreads * sizeof(uint64_t), stream, task);
    if (error != cudaSuccess) return error;
    for (int each = 0; each < task.count; ++each) task.place += static_cast<uint64_t>(task.numbers[each].count);
    task.first = false;
  }
  return cudaSuccess;
}
