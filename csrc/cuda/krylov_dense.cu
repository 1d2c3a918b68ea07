// The dense matrix of a block f-circulant: every thread writes consecutive elements of one row, gathered from v, which
// stays in L1. The element type does not matter beyond its sign bit, so one kernel serves all types of a size.
#include <cuda_runtime.h>

#include "krylov_dense.h"

namespace {

constexpr int kThreads = 256;

template <class Bits>
__global__ void __launch_bounds__(kThreads)
    krylov_dense(const Bits* __restrict__ v, Bits* __restrict__ w, int64_t in_blocks, int64_t block, Bits flip) {
  const int64_t row = blockIdx.x, i = row % block, width = in_blocks * block;
  const Bits* columns = v + row / block * width;
  for (int64_t column = blockIdx.y * kThreads + threadIdx.x; column < width; column += gridDim.y * kThreads) {
    const int64_t q = column / block, j = column - q * block, k = i - j;
    const Bits* c = columns + q * block;
    w[row * width + column] = k >= 0 ? c[k] : static_cast<Bits>(c[k + block] ^ flip);
  }
}

template <class Bits>
cudaError_t launch(const void* v, void* w, int64_t row_blocks, int64_t in_blocks, int64_t block, int sign,
                   cudaStream_t stream) {
  const int64_t rows = row_blocks * block, width = in_blocks * block;
  if (rows == 0 || width == 0) return cudaSuccess;
  if (rows > INT32_MAX) return cudaErrorInvalidValue;
  const int64_t wanted = (width + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(wanted < 64 ? wanted : 64));
  const Bits flip = sign < 0 ? static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1)) : Bits{0};
  krylov_dense<Bits>
      <<<grid, kThreads, 0, stream>>>(static_cast<const Bits*>(v), static_cast<Bits*>(w), in_blocks, block, flip);
  return cudaGetLastError();
}

}  // namespace

extern "C" int surm_cuda_krylov_dense(const void* v, void* w, int64_t row_blocks, int64_t in_blocks, int64_t block,
                                      int sign, int element_size, void* stream) {
  const auto at = static_cast<cudaStream_t>(stream);
  switch (element_size) {
    case 2:
      return launch<uint16_t>(v, w, row_blocks, in_blocks, block, sign, at);
    case 4:
      return launch<uint32_t>(v, w, row_blocks, in_blocks, block, sign, at);
    case 8:
      return launch<unsigned long long>(v, w, row_blocks, in_blocks, block, sign, at);
    default:
      return cudaErrorInvalidValue;
  }
}

extern "C" const char* surm_cuda_error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
