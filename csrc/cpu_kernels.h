// The CPU kernels as the operators of *_operators.h call them.
#pragma once

#include <vector>

#include "cpu/instruction_set.h"
#include "glue.h"

namespace surm::glue {

class CpuKernels {
 public:
  static Tensor empty_rows(const Tensor& like, std::initializer_list<int64_t> size) {
    return surm::glue::empty_rows(like, size);
  }

  static void matmul(const GridShape& shape, const Tensor& x, const void* values, ConstRows base, double scale,
                     void* y) {
    grid().matmul(storage_type(x), shape, rows_of(x), values, base, scale, y, parallel_for);
  }

  static void backward(const GridShape& shape, const Tensor& g, const Tensor& x, const void* values, double scale,
                       void* x_gradient, void* gradient) {
    grid().backward(storage_type(x), shape, rows_of(g), rows_of(x), values, scale, x_gradient, gradient, parallel_for);
  }

  static int64_t spectrum_size(const GridShape& shape, const Tensor& values) {
    return grid().spectrum_size(storage_type(values), shape);
  }

  static void spectrum(const GridShape& shape, const Tensor& values, void* spectrum) {
    grid().spectrum(storage_type(values), shape, values.const_data_ptr(), spectrum, parallel_for);
  }

  // False, and nothing done, where the spectrum belongs to other sizes.
  static bool matmul_by_spectrum(const GridShape& shape, const Tensor& x, const Tensor& spectrum, ConstRows base,
                                 double scale, void* y) {
    return grid().matmul_by_spectrum(storage_type(x), shape, rows_of(x), spectrum.const_data_ptr(), spectrum.numel(),
                                     base, scale, y, parallel_for);
  }

  static void dense(const GridShape& shape, const Tensor& values, void* w) {
    grid_dense().dense(storage_type(values), shape, values.const_data_ptr(), w, parallel_for);
  }

  static void dense_adjoint(const GridShape& shape, const Tensor& w, void* gradient) {
    grid_dense().adjoint(storage_type(w), shape, w.const_data_ptr(), gradient, parallel_for);
  }

  static void merge(const GridShape& shape, const Tensor& values, double scale, const Merge& merge) {
    grid_dense().merge(storage_type(values), shape, values.const_data_ptr(), scale, merge, parallel_for);
  }

  static void stochastic_sum(int64_t rows, int64_t columns, const Merge& merge, const Tensor& addend, bool wide,
                             const Tensor&) {
    stochastic().sum(rows, columns, merge, addend.const_data_ptr(), addend.stride(0), wide, parallel_for);
  }

  static void rounding_key(const std::vector<Numbers>& numbers, uint64_t seed, Tensor& key) {
    *static_cast<uint64_t*>(key.mutable_data_ptr()) =
        stochastic().key(numbers.data(), static_cast<int>(numbers.size()), seed);
  }

  static void matmul(const LdrShape& shape, const Tensor& x, const void* left, const void* right, ConstRows base,
                     double scale, void* y) {
    ldr().matmul(storage_type(x), shape, rows_of(x), left, right, base, scale, y, parallel_for);
  }

  static void backward(const LdrShape& shape, const Tensor& g, const Tensor& x, const void* left, const void* right,
                       double scale, void* x_gradient, void* left_gradient, void* right_gradient) {
    ldr().backward(storage_type(x), shape, rows_of(g), rows_of(x), left, right, scale, x_gradient, left_gradient,
                   right_gradient, parallel_for);
  }

 private:
  static const cpu::GridKernels& grid() { return *cpu::instruction_set().grid; }
  static const cpu::GridDenseKernels& grid_dense() { return *cpu::instruction_set().grid_dense; }
  static const cpu::StochasticKernels& stochastic() { return *cpu::instruction_set().stochastic; }
  static const cpu::LdrKernels& ldr() { return *cpu::instruction_set().ldr; }
};

}  // namespace surm::glue
