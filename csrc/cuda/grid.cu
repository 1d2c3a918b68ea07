// Block f-circulant products and their gradients on CUDA, f = ±1.
//
// As on the CPU, f = 1 is a circulant product as it stands, f = -1 becomes one by the twist exp(iπ j/n), and a size
// whose own transform would be slow is embedded in a circulant of a smooth length N >= 2n - 1, for either f.
#include <utility>

#include "device.cuh"
#include "krylov.h"
#include "plan_tables.cuh"
#include "spectral_product.h"

namespace {

using surm::ConstRows;
using surm::KrylovShape;
using surm::StorageType;
using surm::cuda::Layout;
using surm::cuda::Parameters;
using surm::cuda::SpectralProduct;

bool embedded(int64_t block) { return surm::cuda::plan_length(block, false) != block; }

SpectralProduct product_of(StorageType type, const KrylovShape& shape) {
  int64_t rows = shape.out_blocks, columns = shape.in_blocks;
  if (shape.transposed) std::swap(rows, columns);
  return {type,
          {shape.groups, shape.tokens, rows, columns, shape.block, shape.block,
           shape.sign < 0 && !embedded(shape.block), false},
          shape.block,
          false};
}

// Where v lies in the first column of the circulant that acts as Z_f(v): as it is, and if embedded what wraps around
// comes from the end. Transposed, the circulant's column is reversed but for its first value.
Layout layout_of(int64_t block, int f, bool transposed) {
  const int n = static_cast<int>(block), length = static_cast<int>(surm::cuda::plan_length(block, false));
  if (length == n && !transposed) return {n, {{0, n, 0, 1, 1}}};
  if (length == n) return {n, {{0, 1, 0, 1, 1}, {1, n, n - 1, -1, f}}};
  if (!transposed) return {n, {{0, n, 0, 1, 1}, {length - n + 1, length, 1, 1, f}}};
  return {n, {{0, 1, 0, 1, 1}, {1, n, n - 1, -1, f}, {length - n + 1, length, n - 1, -1, 1}}};
}

// The blocks of v as they act in a product of this shape, or in that with its transpose.
Parameters parameters_of(StorageType type, const KrylovShape& shape, bool transposed) {
  return {type, layout_of(shape.block, shape.sign, transposed), transposed};
}

}  // namespace

extern "C" {

int64_t surm_cuda_krylov_workspace_bytes(StorageType type, const KrylovShape* shape, bool gradient) {
  const SpectralProduct product = product_of(type, *shape);
  return gradient ? product.backward_workspace_bytes() : product.spectra_bytes();
}

int64_t surm_cuda_krylov_shared_bytes(StorageType type, const KrylovShape* shape, bool gradient) {
  const SpectralProduct product = product_of(type, *shape);
  return gradient ? product.backward_shared_bytes() : product.matmul_shared_bytes();
}

int surm_cuda_krylov_matmul(StorageType type, const KrylovShape* shape, ConstRows x, const void* v, ConstRows base,
                            double scale, void* y, void* workspace, void* stream) {
  const int error = surm_cuda_krylov_spectrum(type, shape, v, workspace, stream);
  return error != 0 ? error : product_of(type, *shape).matmul(x, workspace, base, scale, y, stream);
}

int surm_cuda_krylov_backward(StorageType type, const KrylovShape* shape, ConstRows g, ConstRows x, const void* v,
                              double scale, void* x_gradient, void* v_gradient, void* workspace, void* stream) {
  return product_of(type, *shape)
      .backward(g, x, parameters_of(type, *shape, !shape->transposed), v, scale, x_gradient,
                parameters_of(type, *shape, shape->transposed), v_gradient, workspace, stream);
}

int64_t surm_cuda_krylov_spectrum_size(StorageType type, const KrylovShape* shape) {
  return product_of(type, *shape).spectra_values();
}

int surm_cuda_krylov_spectrum(StorageType type, const KrylovShape* shape, const void* v, void* spectrum, void* stream) {
  return product_of(type, *shape).make_spectra(parameters_of(type, *shape, shape->transposed), v, spectrum, stream);
}

int surm_cuda_krylov_matmul_by_spectrum(StorageType type, const KrylovShape* shape, ConstRows x, const void* spectrum,
                                        ConstRows base, double scale, void* y, void* stream) {
  return product_of(type, *shape).matmul(x, spectrum, base, scale, y, stream);
}
}
