// Products with a grid of blocks and their gradients on CUDA: blocks become circulants (plan/block_kinds.h), whose
// products are those of spectral_product.h, or of tensor_product.h where those serve. Spectra have two orders then, one
// after the other.
#include <algorithm>

#include "device.cuh"
#include "grid.h"
#include "plan/block_kinds.h"
#include "plan_tables.cuh"
#include "spectral_product.h"
#include "tensor_product.h"

namespace {

using surm::Block;
using surm::ConstRows;
using surm::GridShape;
using surm::StorageType;
using surm::cuda::Parameters;
using surm::cuda::SpectralProduct;
using surm::cuda::TensorProduct;

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

// The product on the matrix unit, of a single block; there may be none.
TensorProduct tensor_product_of(StorageType type, const GridShape& shape) {
  const SpectralProduct exact = product_of(type, shape);
  const bool single = shape.groups == 1 && exact.shape.all_blocks() == 1;
  const bool possible = single && !exact.shape.reflected && type != StorageType::kFloat64;
  return {type,         exact.size,           exact.padded,        possible ? length_of(Block(shape)) : 0,
          shape.tokens, exact.shape.out_size, exact.shape.in_size, exact.shape.twisted};
}

char* tensor_spectrum_in(void* spectra, StorageType type, const GridShape& shape) {
  return static_cast<char*>(spectra) + product_of(type, shape).spectra_bytes();
}

int64_t bytes_of_floats(int64_t count) { return count * static_cast<int64_t>(sizeof(float)); }

// The spectra of the blocks as they act in a product with W, or with its transpose; in both orders if wanted.
int make_spectra(StorageType type, const GridShape& shape, bool transposed, const void* v, void* spectra, bool both,
                 void* stream) {
  const int error = product_of(type, shape).make_spectra(parameters_of(type, shape, transposed), v, spectra, stream);
  if (error != 0 || !both) return error;
  return tensor_product_of(type, shape)
      .make_spectrum(static_cast<const surm::Complex<float>*>(spectra), tensor_spectrum_in(spectra, type, shape),
                     stream);
}

// Workspace of gradients on the matrix unit, in order.
struct TensorWorkspace {
  char *spectra, *totals, *sums, *flags, *end;

  int64_t bytes() const { return end - spectra; }

  TensorWorkspace(StorageType type, const GridShape& shape, void* memory) {
    const TensorProduct tensor = tensor_product_of(type, shape);
    const int64_t bytes = product_of(type, shape).spectra_bytes();
    spectra = static_cast<char*>(memory);
    totals = spectra + bytes + bytes_of_floats(tensor.spectrum_values());
    sums = totals + bytes;
    flags = sums + tensor.sum_bytes();
    end = flags + tensor.flag_bytes();
  }
};

int tensor_backward(StorageType type, const GridShape& shape, ConstRows g, ConstRows x, const void* v, double scale,
                    void* x_gradient, void* v_gradient, void* workspace, void* stream) {
  const TensorProduct tensor = tensor_product_of(type, shape);
  const TensorWorkspace memory(type, shape, workspace);
  auto* poisoned = reinterpret_cast<int*>(memory.flags);
  int error = 0;
  if (x_gradient != nullptr) {
    error = make_spectra(type, shape, !shape.transposed, v, memory.spectra, true, stream);
    if (error != 0) return error;
  }
  error = tensor.gradients(g, x, tensor_spectrum_in(memory.spectra, type, shape), scale, x_gradient, memory.sums,
                           poisoned, stream);
  if (error != 0) return error;
  const surm::cuda::PartialSums partial{memory.sums, memory.totals, poisoned, static_cast<int>(tensor.chunks()),
                                        1,           true};
  return product_of(type, shape)
      .finish_gradients(partial, parameters_of(type, shape, shape.transposed), scale / tensor.gradient_scale(),
                        v_gradient, stream);
}

}  // namespace

extern "C" {

int64_t surm_cuda_grid_workspace_bytes(StorageType type, const GridShape* shape, bool gradient) {
  const SpectralProduct product = product_of(type, *shape);
  const TensorProduct tensor = tensor_product_of(type, *shape);
  if (!gradient) return product.spectra_bytes() + bytes_of_floats(tensor.spectrum_values());
  const int64_t bytes = product.backward_workspace_bytes();
  return tensor.exists() ? std::max(bytes, TensorWorkspace(type, *shape, nullptr).bytes()) : bytes;
}

int64_t surm_cuda_grid_shared_bytes(StorageType type, const GridShape* shape, bool gradient) {
  const SpectralProduct product = product_of(type, *shape);
  return gradient ? product.backward_shared_bytes() : product.matmul_shared_bytes();
}

int surm_cuda_grid_matmul(StorageType type, const GridShape* shape, ConstRows x, const void* v, ConstRows base,
                          double scale, void* y, void* workspace, void* stream) {
  const bool tensor = tensor_product_of(type, *shape).serves(x, base, false);
  const int error = make_spectra(type, *shape, shape->transposed, v, workspace, tensor, stream);
  return error != 0 ? error : surm_cuda_grid_matmul_by_spectrum(type, shape, x, workspace, base, scale, y, stream);
}

int surm_cuda_grid_backward(StorageType type, const GridShape* shape, ConstRows g, ConstRows x, const void* v,
                            double scale, void* x_gradient, void* v_gradient, void* workspace, void* stream) {
  if (tensor_product_of(type, *shape).serves(g, x, true)) {
    return tensor_backward(type, *shape, g, x, v, scale, x_gradient, v_gradient, workspace, stream);
  }
  return product_of(type, *shape)
      .backward(g, x, parameters_of(type, *shape, !shape->transposed), v, scale, x_gradient,
                parameters_of(type, *shape, shape->transposed), v_gradient, workspace, stream);
}

int64_t surm_cuda_grid_spectrum_size(StorageType type, const GridShape* shape) {
  return product_of(type, *shape).spectra_values() + tensor_product_of(type, *shape).spectrum_values();
}

int surm_cuda_grid_spectrum(StorageType type, const GridShape* shape, const void* v, void* spectrum, void* stream) {
  const bool both = tensor_product_of(type, *shape).exists();
  return make_spectra(type, *shape, shape->transposed, v, spectrum, both, stream);
}

int surm_cuda_grid_matmul_by_spectrum(StorageType type, const GridShape* shape, ConstRows x, const void* spectrum,
                                      ConstRows base, double scale, void* y, void* stream) {
  const TensorProduct tensor = tensor_product_of(type, *shape);
  if (tensor.serves(x, base, false)) {
    const void* in_order = tensor_spectrum_in(const_cast<void*>(spectrum), type, *shape);
    return tensor.matmul(x, in_order, base, scale, y, stream);
  }
  return product_of(type, *shape).matmul(x, spectrum, base, scale, y, stream);
}
}
