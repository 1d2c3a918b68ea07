// Products with a grid of blocks and their gradients on CUDA: blocks become circulants (plan/block_kinds.h), whose
// products are those of spectral_product.h.
#include "device.cuh"
#include "grid.h"
#include "plan/block_kinds.h"
#include "plan_tables.cuh"
#include "spectral_product.h"

namespace {

using surm::Block;
using surm::ConstRows;
using surm::GridShape;
using surm::StorageType;
using surm::cuda::Parameters;
using surm::cuda::SpectralProduct;

int64_t length_of(const Block& block) { return surm::cuda::plan_length(block.count(), block.padded()); }

SpectralProduct product_of(StorageType type, const GridShape& shape) {
  const Block block(shape);
  return {type, spectral_shape(shape, length_of(block)), block.count(), block.padded()};
}

// The blocks of v as they act in a product with W, or with its transpose.
Parameters parameters_of(StorageType type, const GridShape& shape, bool transposed) {
  const Block block(shape);
  const bool wide = shape.wide && type != StorageType::kFloat64;
  return {wide ? StorageType::kFloat32 : type, block.column(length_of(block), transposed), transposed};
}

}  // namespace

extern "C" {

int64_t surm_cuda_grid_workspace_bytes(StorageType type, const GridShape* shape, bool gradient) {
  const SpectralProduct product = product_of(type, *shape);
  return gradient ? product.backward_workspace_bytes() : product.spectra_bytes();
}

int64_t surm_cuda_grid_shared_bytes(StorageType type, const GridShape* shape, bool gradient) {
  const SpectralProduct product = product_of(type, *shape);
  return gradient ? product.backward_shared_bytes() : product.matmul_shared_bytes();
}

int surm_cuda_grid_matmul(StorageType type, const GridShape* shape, ConstRows x, const void* v, ConstRows base,
                          double scale, void* y, void* workspace, void* stream) {
  const int error = surm_cuda_grid_spectrum(type, shape, v, workspace, stream);
  return error != 0 ? error : product_of(type, *shape).matmul(x, workspace, base, scale, y, stream);
}

int surm_cuda_grid_backward(StorageType type, const GridShape* shape, ConstRows g, ConstRows x, const void* v,
                            double scale, void* x_gradient, void* v_gradient, void* workspace, void* stream) {
  return product_of(type, *shape)
      .backward(g, x, parameters_of(type, *shape, !shape->transposed), v, scale, x_gradient,
                parameters_of(type, *shape, shape->transposed), v_gradient, workspace, stream);
}

int64_t surm_cuda_grid_spectrum_size(StorageType type, const GridShape* shape) {
  return product_of(type, *shape).spectra_values();
}

int surm_cuda_grid_spectrum(StorageType type, const GridShape* shape, const void* v, void* spectrum, void* stream) {
  return product_of(type, *shape).make_spectra(parameters_of(type, *shape, shape->transposed), v, spectrum, stream);
}

int surm_cuda_grid_matmul_by_spectrum(StorageType type, const GridShape* shape, ConstRows x, const void* spectrum,
                                      ConstRows base, double scale, void* y, void* stream) {
  return product_of(type, *shape).matmul(x, spectrum, base, scale, y, stream);
}
}
