// Products of tokens with a grid of circulant blocks given by their spectra, and both gradients of them, as the
// primitives that consist of such blocks start them. No torch inside; what returns int returns a cudaError_t or
// kTooLarge.
#pragma once

#include <cstdint>

#include "butterflies.h"
#include "plan/block_kinds.h"
#include "plan/spectral_shape.h"
#include "shapes.h"

namespace surm::cuda {

// Parameters (groups, rows, columns, layout.count), or (groups, columns, rows, layout.count) if transposed.
struct Parameters {
  StorageType type;
  Layout layout;
  bool transposed;
};

// Sums over the chunks of tokens of a group of the spectra of parameter gradients.
struct PartialSums {
  const void* sums;     // (groups, chunks, rows, columns), of each one spectrum for every pair of a unit, tile by tile
  void* totals;         // room for the spectra of all blocks
  const int* poisoned;  // (groups, chunks), whether a token was not finite
  int chunks, pairs;
  bool tensor = false;  // of one block, in the order of tensor_product.h, of a single pair
};

// `size` and `padded` name the plan (plan_tables.cuh); `type` is that of the rows.
struct SpectralProduct {
  StorageType type;
  SpectralShape shape;
  int64_t size;
  bool padded;

  // Bytes of shared memory of a block of threads, at the least.
  int64_t matmul_shared_bytes() const;
  int64_t backward_shared_bytes() const;

  // Values of the arithmetic type, float or double, in the spectra of all blocks, and their bytes.
  int64_t spectra_values() const;
  int64_t spectra_bytes() const;

  // Bytes of workspace that backward() takes on the current device.
  int64_t backward_workspace_bytes() const;

  int make_spectra(const Parameters& parameters, const void* values, void* spectra, void* stream) const;

  // y = base + scale · product, by spectra of the blocks of this shape.
  int matmul(ConstRows x, const void* spectra, ConstRows base, double scale, void* y, void* stream) const;

  // x_gradient (if not null) = scale · transposed product of g, and the gradients of scale · ⟨g, product⟩ with respect
  // to the parameters, whose `values` (null without x_gradient) have the blocks of this shape laid out by
  // `transposed_blocks` to be transposed, and by `parameters` for the gradients.
  int backward(ConstRows g, ConstRows x, const Parameters& transposed_blocks, const void* values, double scale,
               void* x_gradient, const Parameters& parameters, void* gradients, void* workspace, void* stream) const;

  // The last part of backward(): adds the sums in a fixed order, and makes `scale` · gradients of them.
  int finish_gradients(const PartialSums& partial, const Parameters& parameters, double scale, void* gradients,
                       void* stream) const;
};

}  // namespace surm::cuda
