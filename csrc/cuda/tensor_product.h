// The product with one circulant or skew-circulant matrix of N = 256 · R values, R = 1 … 16, 18, 20 … 32, or with its
// first rows and columns where R > 4, and its gradients, on the matrix unit, for tokens of 16 bits:
// docs/gpu-kernels.md compares it with the exact kernels of spectral_product.h. No torch inside; what returns int
// returns a cudaError_t.
#pragma once

#include <cstdint>

#include "butterflies.h"
#include "shapes.h"

namespace surm::cuda {

struct TensorProduct {
  StorageType type;  // of the tokens
  int64_t size;      // which names, with `padded`, the plan that makes the spectrum (plan_tables.cuh)
  bool padded;
  int64_t length;  // N
  int64_t tokens;
  int64_t rows, columns;  // of the matrix, both N or multiples of 8
  bool twisted;           // skew-circulant

  // Whether there is such a transform.
  bool exists() const;

  // Whether it may serve such rows, of which some may have no data: on the current device, in their type, as they lie
  // in memory, and as SURM_KERNELS_GPU_PRECISION has it.
  bool serves(ConstRows first, ConstRows second, bool gradient) const;

  // Floats of a spectrum in its own order.
  int64_t spectrum_values() const;
  // Bytes of the partial sums of the gradient, and of the flags behind them.
  int64_t sum_bytes() const;
  int64_t flag_bytes() const;
  // Blocks of threads that share the tokens of a gradient.
  int64_t chunks() const;

  // From the spectrum of spectral_product.h.
  int make_spectrum(const Complex<float>* spectrum, void* to, void* stream) const;

  // y = base + scale · product.
  int matmul(ConstRows x, const void* spectrum, ConstRows base, double scale, void* y, void* stream) const;

  // x_gradient (if not null) = scale · transposed product of g, by the spectrum of the transposed matrix, and the sums
  // over chunks of tokens of the spectrum of the parameter's gradient, times gradient_scale().
  int gradients(ConstRows g, ConstRows x, const void* spectrum, double scale, void* x_gradient, void* sums,
                int* poisoned, void* stream) const;
  double gradient_scale() const;
};

}  // namespace surm::cuda
