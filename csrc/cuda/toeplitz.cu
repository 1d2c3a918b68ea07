// Toeplitz and Hankel products and their gradients on CUDA.
//
// As on the CPU, a grid of m × n Toeplitz blocks is a part of a grid of N × N circulant ones for any N >= m + n - 1: t
// is laid out along the first column. A Hankel matrix is one with the rows of x in reversed order, which in the
// frequency domain is a conjugation.
#include "device.cuh"
#include "plan_tables.cuh"
#include "spectral_product.h"
#include "toeplitz.h"

namespace {

using surm::ConstRows;
using surm::StorageType;
using surm::ToeplitzShape;
using surm::cuda::Layout;
using surm::cuda::Parameters;
using surm::cuda::SpectralProduct;

int64_t count_of(const ToeplitzShape& shape) { return shape.rows + shape.columns - 1; }

SpectralProduct product_of(StorageType type, const ToeplitzShape& shape) {
  if (shape.transposed) {
    return {type,
            {shape.groups, shape.tokens, shape.in_blocks, shape.out_blocks, shape.columns, shape.rows, false,
             shape.reflected},
            count_of(shape),
            true};
  }
  return {type,
          {shape.groups, shape.tokens, shape.out_blocks, shape.in_blocks, shape.rows, shape.columns, false,
           shape.reflected},
          count_of(shape),
          true};
}

// Where t_k is in the first column of the circulant: diagonal i - j = k - (n - 1) of W, from the end if negative;
// transposed, the diagonal changes sign. Reflected, x_j sits at -j and t_k at i + j = k.
Layout layout_of(const ToeplitzShape& shape, bool transposed) {
  const int m = static_cast<int>(shape.rows), n = static_cast<int>(shape.columns), count = m + n - 1;
  const int length = static_cast<int>(surm::cuda::plan_length(count, true));
  if (shape.reflected) return {count, {{0, count, 0, 1, 1}}};
  if (transposed) return {count, {{0, n, n - 1, -1, 1}, {length - m + 1, length, count - 1, -1, 1}}};
  return {count, {{0, m, n - 1, 1, 1}, {length - n + 1, length, 0, 1, 1}}};
}

// The blocks of t as they act in a product with W, or with its transpose.
Parameters parameters_of(StorageType type, const ToeplitzShape& shape, bool transposed) {
  const bool wide = shape.wide && type != StorageType::kFloat64;
  return {wide ? StorageType::kFloat32 : type, layout_of(shape, transposed), transposed};
}

}  // namespace

extern "C" {

int64_t surm_cuda_toeplitz_workspace_bytes(StorageType type, const ToeplitzShape* shape, bool gradient) {
  const SpectralProduct product = product_of(type, *shape);
  return gradient ? product.backward_workspace_bytes() : product.spectra_bytes();
}

int64_t surm_cuda_toeplitz_shared_bytes(StorageType type, const ToeplitzShape* shape, bool gradient) {
  const SpectralProduct product = product_of(type, *shape);
  return gradient ? product.backward_shared_bytes() : product.matmul_shared_bytes();
}

int surm_cuda_toeplitz_matmul(StorageType type, const ToeplitzShape* shape, ConstRows x, const void* t, ConstRows base,
                              double scale, void* y, void* workspace, void* stream) {
  const int error = surm_cuda_toeplitz_spectrum(type, shape, t, workspace, stream);
  return error != 0 ? error : product_of(type, *shape).matmul(x, workspace, base, scale, y, stream);
}

int surm_cuda_toeplitz_backward(StorageType type, const ToeplitzShape* shape, ConstRows g, ConstRows x, const void* t,
                                double scale, void* x_gradient, void* t_gradient, void* workspace, void* stream) {
  return product_of(type, *shape)
      .backward(g, x, parameters_of(type, *shape, !shape->transposed), t, scale, x_gradient,
                parameters_of(type, *shape, shape->transposed), t_gradient, workspace, stream);
}

int64_t surm_cuda_toeplitz_spectrum_size(StorageType type, const ToeplitzShape* shape) {
  return product_of(type, *shape).spectra_values();
}

int surm_cuda_toeplitz_spectrum(StorageType type, const ToeplitzShape* shape, const void* t, void* spectrum,
                                void* stream) {
  return product_of(type, *shape).make_spectra(parameters_of(type, *shape, shape->transposed), t, spectrum, stream);
}

int surm_cuda_toeplitz_matmul_by_spectrum(StorageType type, const ToeplitzShape* shape, ConstRows x,
                                          const void* spectrum, ConstRows base, double scale, void* y, void* stream) {
  return product_of(type, *shape).matmul(x, spectrum, base, scale, y, stream);
}
}
