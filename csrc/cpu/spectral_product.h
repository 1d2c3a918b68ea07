// Products of tokens with a grid of circulant blocks given by their spectra, and both gradients of them.
//
// What the spectra mean is the caller's: f-circulant blocks directly or embedded (krylov_kernels.cpp), Toeplitz blocks
// embedded (toeplitz_kernels.cpp).
#pragma once

#include <functional>
#include <memory>

#include "transform.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

struct SpectralShape {
  int64_t groups;             // independent problems
  int64_t tokens;             // rows of x in each
  int64_t rows, columns;      // blocks of an output row, blocks of an input row
  int64_t out_size, in_size;  // values of an output block, of an input block; the rest of a transform is padding
  bool twisted;               // multiply by exp(iπ j/n) on the way in and its conjugate on the way out
  bool reflected;             // the product is with rows in reversed order, x[-j mod N]

  int64_t blocks() const { return rows * columns; }
  int64_t in_width() const { return columns * in_size; }
  int64_t out_width() const { return rows * out_size; }
};

template <class Storage>
class SpectralProduct {
  using Scalar = ComputeType<Storage>;
  using C = Complex<Vector<Scalar>>;

 public:
  using Fill = std::function<void(int64_t item, Scalar* values)>;
  using Take = std::function<void(int64_t group, int64_t row, int64_t column, Scalar* values, bool finite)>;

  SpectralProduct(const SpectralShape& shape, const Transform<Scalar>& transform, const ParallelFor& parallel);
  ~SpectralProduct();

  // Spectra of `count` parameter blocks, divided by the transform's length: fill(item, values) gives the first column
  // of the circulant block. They are the same for any number of tokens.
  Buffer<C> parameter_spectra(int64_t count, const Fill& fill) const;
  int64_t spectrum_vectors() const;  // complex vectors in one of them

  // y = base + scale · product; `factors` are the spectra (groups, rows, columns).
  void matmul(const ConstRows& x, const C* factors, const ConstRows& base, double scale, Storage* y) const;

  // x_gradient (if not null) = scale · transposed product of g, `factors` the transposed blocks' spectra (groups,
  // columns, rows). take(group, row, column, values, finite) gets scale · the gradient of a block's first column,
  // summed over tokens; finite is false if a token was not, and then the values say nothing.
  void backward(const ConstRows& g, const ConstRows& x, const C* factors, double scale, Storage* x_gradient,
                const Take& take) const;

 private:
  class Machine;  // in spectral_product_kernels.cpp, compiled once for all that use it
  const std::unique_ptr<const Machine> machine_;
};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
