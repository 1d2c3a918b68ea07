// The CPU kernels as the operators of krylov_operators.h, toeplitz_operators.h and ldr_operators.h call them.
#pragma once

#include "cpu/instruction_set.h"
#include "glue.h"

namespace surm::glue {

class CpuKernels {
 public:
  static Tensor empty_rows(const Tensor& like, std::initializer_list<int64_t> size) {
    return surm::glue::empty_rows(like, size);
  }

  template <class Shape>
  static void matmul(const Shape& shape, const Tensor& x, const void* parameter, ConstRows base, double scale,
                     void* y) {
    of(shape).matmul(storage_type(x), shape, rows_of(x), parameter, base, scale, y, parallel_for);
  }

  template <class Shape>
  static void backward(const Shape& shape, const Tensor& g, const Tensor& x, const void* parameter, double scale,
                       void* x_gradient, void* gradient) {
    of(shape).backward(storage_type(x), shape, rows_of(g), rows_of(x), parameter, scale, x_gradient, gradient,
                       parallel_for);
  }

  template <class Shape>
  static int64_t spectrum_size(const Shape& shape, const Tensor& parameter) {
    return of(shape).spectrum_size(storage_type(parameter), shape);
  }

  template <class Shape>
  static void spectrum(const Shape& shape, const Tensor& parameter, void* spectrum) {
    of(shape).spectrum(storage_type(parameter), shape, parameter.const_data_ptr(), spectrum, parallel_for);
  }

  // False, and nothing done, where the spectrum belongs to other sizes.
  template <class Shape>
  static bool matmul_by_spectrum(const Shape& shape, const Tensor& x, const Tensor& spectrum, ConstRows base,
                                 double scale, void* y) {
    return of(shape).matmul_by_spectrum(storage_type(x), shape, rows_of(x), spectrum.const_data_ptr(), spectrum.numel(),
                                        base, scale, y, parallel_for);
  }

  template <class Shape>
  static void dense(const Shape& shape, const Tensor& parameter, void* w) {
    dense_of(shape).dense(storage_type(parameter), shape, parameter.const_data_ptr(), w, parallel_for);
  }

  template <class Shape>
  static void dense_adjoint(const Shape& shape, const Tensor& w, void* gradient) {
    dense_of(shape).adjoint(storage_type(w), shape, w.const_data_ptr(), gradient, parallel_for);
  }

  template <class Shape>
  static void merge(const Shape& shape, const Tensor& parameter, double scale, const Merge& merge) {
    dense_of(shape).merge(storage_type(parameter), shape, parameter.const_data_ptr(), scale, merge, parallel_for);
  }

  static void matmul(const LdrShape& shape, const Tensor& x, const void* left, const void* right, ConstRows base,
                     double scale, void* y) {
    cpu::instruction_set().ldr->matmul(storage_type(x), shape, rows_of(x), left, right, base, scale, y, parallel_for);
  }

  static void backward(const LdrShape& shape, const Tensor& g, const Tensor& x, const void* left, const void* right,
                       double scale, void* x_gradient, void* left_gradient, void* right_gradient) {
    cpu::instruction_set().ldr->backward(storage_type(x), shape, rows_of(g), rows_of(x), left, right, scale, x_gradient,
                                         left_gradient, right_gradient, parallel_for);
  }

 private:
  static const cpu::KrylovKernels& of(const KrylovShape&) { return *cpu::instruction_set().krylov; }
  static const cpu::ToeplitzKernels& of(const ToeplitzShape&) { return *cpu::instruction_set().toeplitz; }
  static const cpu::KrylovDenseKernels& dense_of(const KrylovShape&) { return *cpu::instruction_set().krylov_dense; }
  static const cpu::ToeplitzDenseKernels& dense_of(const ToeplitzShape&) {
    return *cpu::instruction_set().toeplitz_dense;
  }
};

}  // namespace surm::glue
