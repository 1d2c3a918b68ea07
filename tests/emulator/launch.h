// Starting kernels: CUDA's built-in variables, the limits of a launch, blocks in random order, and a record of
// launches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "block.h"
#include "runtime.h"

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace surm::emulator {

inline unsigned seed = 1;

struct Launch {
  Site site;
  dim3 grid;
  int threads;
  int64_t shared_bytes;
  int64_t barriers = 0;  // that the last block passed
};

inline std::vector<Launch> launches;

// A grid, and where the launch is written.
struct Grid {
  dim3 size;
  Site site;

  Grid(dim3 size, const char* file = __builtin_FILE(), int line = __builtin_LINE()) : size(size), site{file, line} {}
};

inline cudaError_t check_launch(const void* kernel, const dim3& grid, int threads, int64_t shared_bytes) {
  constexpr unsigned kMostAcross = 65535;
  if (next_launch != cudaSuccess) return std::exchange(next_launch, cudaSuccess);
  if (const cudaError_t error = load(kernel); error != cudaSuccess) return error;
  const bool fits = grid.x > 0 && grid.x <= INT32_MAX && grid.y > 0 && grid.y <= kMostAcross && grid.z > 0 &&
                    grid.z <= kMostAcross && threads > 0 && threads <= kMostThreads;
  if (!fits) return cudaErrorInvalidConfiguration;
  const int64_t limit = shared_bytes_of_kernels[{kernel, current_device}];
  return shared_bytes >= 0 && shared_bytes <= limit ? cudaSuccess : cudaErrorInvalidValue;
}

inline std::string text(const dim3& place) {
  return "(" + std::to_string(place.x) + ", " + std::to_string(place.y) + ", " + std::to_string(place.z) + ")";
}

inline void run_grid(Launch& launch, const std::function<void()>& kernel) {
  std::mt19937 random(seed);
  const dim3& grid = launch.grid;
  std::vector<int64_t> order(static_cast<int64_t>(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  gridDim = grid;
  blockDim = dim3(launch.threads);
  for (const int64_t number : order) {
    blockIdx = dim3(number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y);
    try {
      block.run(launch.threads, launch.shared_bytes, random, kernel,
                [](int thread) { threadIdx = dim3(thread, 0, 0); });
    } catch (const Error& error) {
      throw Error(std::string(error.what()) + "; block " + text(blockIdx) + " of " + text(grid) +
                  ", kernel launched at " + launch.site.text() + ", seed " + std::to_string(seed));
    }
    launch.barriers = block.barriers();
  }
}

}  // namespace surm::emulator

namespace surm::cuda {

using emulator::Grid;

// Runs a kernel to its end; the stream does not matter, as nothing runs beside anything else.
template <class... Parameters, class... Arguments>
cudaError_t start(void (*kernel)(Parameters...), Grid grid, int threads, int64_t shared_bytes, void*,
                  Arguments... arguments) {
  const void* function = reinterpret_cast<const void*>(kernel);
  const cudaError_t error = emulator::told(emulator::check_launch(function, grid.size, threads, shared_bytes));
  if (error != cudaSuccess) return error;
  emulator::Launch launch{grid.site, grid.size, threads, shared_bytes};
  emulator::run_grid(launch, [&] { kernel(static_cast<Parameters>(arguments)...); });
  emulator::launches.push_back(launch);
  return cudaSuccess;
}

}  // namespace surm::cuda
