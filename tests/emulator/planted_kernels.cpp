// A kernel that is right, the same with one mistake each, and small ones that show a single property of the emulator.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "butterflies.h"
#include "controls.h"
#include "cuda/device.cuh"
#include "cuda/matrix_unit.cuh"

namespace {

using surm::Complex;
using surm::cuda::launch;
using surm::cuda::Shared;
using surm::cuda::shared_memory;

constexpr int kThreads = 64;
constexpr uint32_t kAllLanes = 0xffffffff;

enum Mistake { kNone, kMissingBarrier, kOutOfBounds, kDivergentBarrier, kLeavesEarly, kMissingLane, kReadsUnwritten };

__device__ float sum_of_warp(float value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}

// y[block] = the sum of x over the block's threads.
template <Mistake kMistake>
__global__ void __launch_bounds__(kThreads) sum_of_block(const float* x, float* y) {
  const Shared<float> sums = shared_memory<float>(16);
  const int thread = threadIdx.x, warp = thread / 32;
  if (kMistake == kLeavesEarly && thread == 5) return;
  float value = x[blockIdx.x * blockDim.x + thread];
  if (kMistake != kMissingLane || thread != 37) value = sum_of_warp(value);
  if (thread % 32 == 0 && (kMistake != kReadsUnwritten || warp == 0))
    sums[kMistake == kOutOfBounds ? 2 * warp : warp] = value;
  if (kMistake == kDivergentBarrier && warp == 1) {
    __syncthreads();
  } else if (kMistake != kMissingBarrier) {
    __syncthreads();
  }
  if (thread == 0) y[blockIdx.x] = sums[0] + sums[1];
}

template <Mistake kMistake>
void sum_of_blocks(pybind11::array_t<float> x, pybind11::array_t<float> y) {
  const int error = launch(sum_of_block<kMistake>, dim3(static_cast<unsigned>(y.size())), kThreads,
                           16 + 2 * sizeof(float), nullptr, x.data(), y.mutable_data());
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(static_cast<cudaError_t>(error)));
}

// Each value is moved one place on, through shared memory, in one interval after another.
template <class T>
__global__ void rotate(const T* x, T* y, int times) {
  const Shared<T> row = shared_memory<T>();
  const int i = threadIdx.x, n = blockDim.x;
  row[i] = x[i];
  for (int k = 0; k < times; ++k) {
    __syncthreads();
    const T value = row[(i + n - 1) % n];
    __syncthreads();
    row[i] = value;
  }
  y[i] = row[i];
}

template <class T>
void rotated(pybind11::array x, pybind11::array y, int times) {
  const int threads = static_cast<int>(x.nbytes() / sizeof(T));
  launch(rotate<T>, dim3(1), threads, x.nbytes(), nullptr, static_cast<const T*>(x.data()),
         static_cast<T*>(y.mutable_data()), times);
}

// The order in which the threads of all blocks come to write.
__global__ void write_order(int* order, int* next) { order[(*next)++] = blockIdx.x * blockDim.x + threadIdx.x; }

// Two threads write neighbouring 16-bit values, or the same one.
__global__ void write_halves(int distance) { shared_memory<uint16_t>()[distance * threadIdx.x] = 1; }

__global__ void write_one(int read) {
  const Shared<uint32_t> memory = shared_memory<uint32_t>();
  if (threadIdx.x == 1 || !read) {
    memory[0] = 1;
  } else if (memory[0] == 2) {
    memory[1] = 1;
  }
}

// Reads a value of T at a byte of shared memory.
template <class T>
__global__ void read_at(int byte, T* value) {
  *value = shared_memory<T>(byte)[0];
}

// A read of device memory that the device would refuse.
__global__ void read_device(const unsigned char* memory, uint4* value) {
  *value = *reinterpret_cast<const uint4*>(memory);
}

// Each lane takes the value of another: down by `lanes`, or from lane `lanes`.
__global__ void shuffled(int* y, int lanes, int width, bool down) {
  const int lane = threadIdx.x;
  y[lane] = down ? __shfl_down_sync(kAllLanes, lane, lanes, width) : __shfl_sync(kAllLanes, lane, lanes, width);
}

// y[thread] = 2 where any thread of the block has the number `which`, 1 where none has.
__global__ void any_of_block(int* y, int which) {
  const int thread = threadIdx.x, first = __syncthreads_or(thread == which), second = __syncthreads_or(first == 0);
  y[thread] = 2 * first + second;
}

// Lanes of a warp hand a value to their neighbours through shared memory, in one interval of the warp after another; in
// the end all of them to the first lane of the block.
template <bool kBetween>
__global__ void rotate_in_warps(int* y, int times, bool across) {
  const Shared<int> row = shared_memory<int>();
  const int thread = threadIdx.x, first = thread / 32 * 32, from = first + (thread + 31) % 32;
  row[thread] = thread;
  for (int k = 0; k < times; ++k) {
    __syncwarp();
    const int value = row[across ? (thread + 32) % blockDim.x : from];
    if (kBetween) __syncwarp();
    row[thread] = value;
  }
  y[thread] = row[thread];
}

template <bool kBetween>
void rotated_in_warps(pybind11::array_t<int> y, int times, bool across) {
  launch(rotate_in_warps<kBetween>, dim3(1), static_cast<int>(y.size()), y.nbytes(), nullptr, y.mutable_data(), times,
         across);
}

// Which lanes do what their warp does together: all, all but one, or one after the others.
__global__ void meet_in_warps(int missing) {
  if (static_cast<int>(threadIdx.x) != missing) __syncwarp();
}

// y = a b for a 16 × 16 and b 16 × 8 of 16 bits, the sums in float32: both go through shared memory, row by row, a to
// be a left factor as it lies, b to be a right one transposed.
enum Layout { kAsItIs, kTransposedLeft, kSwappedWords, kNoBarrier, kInHalves };

template <bool kBFloat16, Layout kLayout>
__global__ void __launch_bounds__(32) multiply(const uint4* a, const uint4* b, float* y) {
  const Shared<uint4> left = shared_memory<uint4>(), right = shared_memory<uint4>(32 * sizeof(uint4));
  const int lane = threadIdx.x, i = lane % 8, m = lane / 8;
  left[lane] = a[lane];
  if (lane < 16) right[lane] = b[lane];
  if (kLayout != kNoBarrier) __syncwarp();
  uint32_t words[4], factor[2];
  surm::cuda::load_matrices<4, kLayout == kTransposedLeft>(left + ((i + m % 2 * 8) * 2 + m / 2), words);
  surm::cuda::load_matrices<2, true>(right + lane % 16, factor);
  uint4 all{words[0], words[1], words[2], words[3]};
  if (kLayout == kSwappedWords) all = uint4{words[0], words[2], words[1], words[3]};
  float sums[4] = {};
  if (kLayout == kInHalves) {
    surm::cuda::multiply_add(sums, all.x, all.y, factor[0]);
    surm::cuda::multiply_add(sums, all.z, all.w, factor[1]);
  } else {
    surm::cuda::multiply_add<kBFloat16>(sums, all, factor[0], factor[1]);
  }
  for (int k = 0; k < 4; ++k) y[(lane / 4 + k / 2 * 8) * 8 + lane % 4 * 2 + k % 2] = sums[k];
}

template <bool kBFloat16, Layout kLayout>
void multiplied(pybind11::array a, pybind11::array b, pybind11::array_t<float> y) {
  launch(multiply<kBFloat16, kLayout>, dim3(1), 32, 48 * sizeof(uint4), nullptr, static_cast<const uint4*>(a.data()),
         static_cast<const uint4*>(b.data()), y.mutable_data());
}

// What every lane gets of kCount matrices of 8 × 8 that lie one after another.
template <int kCount, bool kTransposed>
__global__ void __launch_bounds__(32) load(const uint4* x, uint32_t* y) {
  const Shared<uint4> rows = shared_memory<uint4>();
  const int lane = threadIdx.x;
  if (lane < 8 * kCount) rows[lane] = x[lane];
  __syncwarp();
  uint32_t words[kCount];
  surm::cuda::load_matrices<kCount, kTransposed>(rows + lane % (8 * kCount), words);
  for (int m = 0; m < kCount; ++m) y[lane * kCount + m] = words[m];
}

template <int kCount, bool kTransposed>
void loaded(pybind11::array x, pybind11::array_t<uint32_t> y) {
  launch(load<kCount, kTransposed>, dim3(1), 32, 8 * kCount * sizeof(uint4), nullptr,
         static_cast<const uint4*>(x.data()), y.mutable_data());
}

// What a launch of these sizes returns.
template <int kNumber>
__global__ void nothing() {}

const char* words(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

const char* launch_nothing(unsigned x, unsigned y, int threads, int64_t shared_bytes) {
  return words(launch(nothing<0>, dim3(x, y), threads, shared_bytes, nullptr));
}

// The same of kernels that nobody has loaded before, the second time without preparing one.
const char* launch_new() { return words(launch(nothing<1>, dim3(1), 1, 64 << 10, nullptr)); }
const char* start_new() { return words(surm::cuda::start(nothing<2>, dim3(1), 1, 0, nullptr)); }

}  // namespace

PYBIND11_MODULE(planted_kernels, m) {
  surm::emulator::bind_controls(m);
  m.def("sum", &sum_of_blocks<kNone>);
  m.def("sum_with_missing_barrier", &sum_of_blocks<kMissingBarrier>);
  m.def("sum_out_of_bounds", &sum_of_blocks<kOutOfBounds>);
  m.def("sum_with_divergent_barrier", &sum_of_blocks<kDivergentBarrier>);
  m.def("sum_of_threads_that_leave", &sum_of_blocks<kLeavesEarly>);
  m.def("sum_with_missing_lane", &sum_of_blocks<kMissingLane>);
  m.def("sum_of_unwritten", &sum_of_blocks<kReadsUnwritten>);
  m.def("rotate_16", &rotated<uint16_t>);
  m.def("rotate_complex", &rotated<Complex<float>>);
  m.def("rotate_128", &rotated<uint4>);
  m.def("write_order", [](pybind11::array_t<int> order, unsigned blocks, int threads) {
    int next = 0;
    launch(write_order, dim3(blocks), threads, 0, nullptr, order.mutable_data(), &next);
  });
  m.def("write_halves", [](int distance) { launch(write_halves, dim3(1), 2, 64, nullptr, distance); });
  m.def("write_and_write", [] { launch(write_one, dim3(1), 2, 64, nullptr, 0); });
  m.def("write_and_read", [] { launch(write_one, dim3(1), 2, 64, nullptr, 1); });
  m.def("read_shared_double", [](int byte) {
    double value = 0;
    launch(read_at<double>, dim3(1), 1, 64, nullptr, byte, &value);
    return value;
  });
  m.def("read_device_16_bytes", [](pybind11::array_t<unsigned char> memory) {
    uint4 value{};
    launch(read_device, dim3(1), 1, 0, nullptr, memory.data(), &value);
  });
  m.def("shuffled", [](pybind11::array_t<int> y, int lanes, int width, bool down) {
    launch(shuffled, dim3(1), static_cast<int>(y.size()), 0, nullptr, y.mutable_data(), lanes, width, down);
  });
  m.def("any_of_block", [](pybind11::array_t<int> y, int which) {
    launch(any_of_block, dim3(1), static_cast<int>(y.size()), 0, nullptr, y.mutable_data(), which);
  });
  m.def("rotate_in_warps", &rotated_in_warps<true>);
  m.def("rotate_in_warps_with_missing_barrier", &rotated_in_warps<false>);
  m.def("meet_in_warps",
        [](int threads, int missing) { launch(meet_in_warps, dim3(1), threads, 0, nullptr, missing); });
  m.def("multiply_float16", &multiplied<false, kAsItIs>);
  m.def("multiply_bfloat16", &multiplied<true, kAsItIs>);
  m.def("multiply_in_halves", &multiplied<false, kInHalves>);
  m.def("multiply_with_transposed_factor", &multiplied<false, kTransposedLeft>);
  m.def("multiply_with_swapped_words", &multiplied<false, kSwappedWords>);
  m.def("multiply_without_barrier", &multiplied<false, kNoBarrier>);
  m.def("load_1", &loaded<1, false>);
  m.def("load_2", &loaded<2, false>);
  m.def("load_4", &loaded<4, false>);
  m.def("load_1_transposed", &loaded<1, true>);
  m.def("load_2_transposed", &loaded<2, true>);
  m.def("load_4_transposed", &loaded<4, true>);
  m.def("float16_pair", &surm::cuda::float16_pair);
  m.def("bfloat16_pair", &surm::cuda::bfloat16_pair);
  m.def("multiply_pair", &surm::cuda::multiply_bfloat16);
  m.def("multiply_pair_float16", &surm::cuda::multiply_float16);
  m.def("launch", &launch_nothing);
  m.def("launch_new", &launch_new);
  m.def("start_new", &start_new);
  m.def("bfloat16_to_float", &surm::cuda::bfloat16_to_float);
  m.def("float_to_bfloat16", &surm::cuda::float_to_bfloat16);
  m.def("half_to_float", &surm::cuda::half_to_float);
  m.def("float_to_half", &surm::cuda::float_to_half);
}
