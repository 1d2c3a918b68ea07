// Products of tokens with a grid of circulant blocks given by their spectra, and both gradients of them, as the
// primitives that consist of such blocks start them. No torch inside; what returns int returns a cudaError_t or
// kTooLarge.
#pragma once

#include <cstdint>

#include "butterflies.h"
#include "shapes.h"

namespace surm::cuda {

struct SpectralShape {
  int64_t groups;             // independent problems
  int64_t tokens;             // rows of x in each
  int64_t rows, columns;      // blocks of an output row, blocks of an input row
  int64_t out_size, in_size;  // values of an output block, of an input block; the rest of a transform is padding
  bool twisted;               // multiply by exp(iπ j/n) on the way in and its conjugate on the way out
  bool reflected;             // the product is with rows in reversed order, x[-j mod N]

  int64_t blocks() const { return groups * rows * columns; }
};

// Values start, start ± 1, … of a parameter, times a factor, lie at begin … end-1 in the first column of a circulant.
struct Segment {
  int begin = 0, end = 0;
  int start = 0, step = 1;
  int factor = 1;
};

// How the `count` values of a parameter lie in the first column of its circulant block; what no segment covers is zero.
struct Layout {
  static constexpr int kSegments = 3;
  int count = 0;
  Segment segments[kSegments];
};

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
