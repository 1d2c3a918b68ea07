// Products of tokens with a grid of circulant blocks given by their spectra, and both gradients of them.
//
// What the spectra mean is the caller's (grid_kernels.cpp).
#pragma once

#include <functional>
#include <memory>

#include "../plan/spectral_shape.h"
#include "transform.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

template <class Storage>
class SpectralProduct {
  using Scalar = ComputeType<Storage>;
  using C = Complex<Vector<Scalar>>;

 public:
  using Fill = std::function<void(int64_t item, Scalar* values)>;
  using Take = std::function<void(int64_t group, int64_t row, int64_t column, const Scalar* values, bool finite)>;

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
