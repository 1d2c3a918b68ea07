// The toeplitz operators over the kernels of any device: checks and allocation. `Kernels` is CpuKernels or CudaKernels.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "glue.h"
#include "merge.h"
#include "spectrum.h"

namespace surm::glue {

// The rows of a block of t with so many columns.
inline int64_t toeplitz_rows(const Tensor& t, int64_t columns) {
  const int64_t length = t.size(t.dim() - 1);
  STD_TORCH_CHECK(columns > 0 && columns <= length, "surm_kernels: columns must be from 1 to ", length, ", got ",
                  columns);
  return length - columns + 1;
}

// t has the type of x or, where that has 16 bits, may be float32.
inline ToeplitzShape toeplitz_shape(const Tensor& t, const Tensor& x, int64_t columns, bool transposed,
                                    bool reflected) {
  STD_TORCH_CHECK(t.dim() == 4, "surm_kernels: t must have 4 dimensions, got ", t.dim());
  const bool wide = t.scalar_type() == ScalarType::Float && x.element_size() == 2;
  STD_TORCH_CHECK(wide || t.scalar_type() == x.scalar_type(), "surm_kernels: t has another dtype than the rest");
  check_device(t, "t", x);
  const int64_t rows = toeplitz_rows(t, columns);
  return {t.size(0), x.size(1), t.size(1), t.size(2), rows, columns, transposed, reflected, wide};
}

template <class Kernels>
Tensor toeplitz(const Tensor& x_in, const Tensor& t_in, const std::optional<Tensor>& base_in, int64_t columns,
                double scale, bool transposed, bool reflected) {
  check_tensor(x_in, "x", 3, x_in);
  const ToeplitzShape shape = toeplitz_shape(t_in, x_in, columns, transposed, reflected);
  const int64_t in_width = shape.in_blocks * shape.columns, out_width = shape.out_blocks * shape.rows;
  check_size("x.shape[0]", x_in.size(0), shape.groups);
  check_size("x.shape[2]", x_in.size(2), transposed ? out_width : in_width);
  const Tensor x = with_contiguous_rows(x_in), t = torch::stable::contiguous(t_in);
  Tensor y = Kernels::empty_rows(x, {shape.groups, shape.tokens, transposed ? in_width : out_width});
  const Base base(base_in, y);
  if (y.numel() > 0) Kernels::matmul(shape, x, t.const_data_ptr(), base.rows(), scale, y.mutable_data_ptr());
  return y;
}

template <class Kernels>
Tensor toeplitz_spectrum(const Tensor& t_in, int64_t columns, bool transposed, bool reflected) {
  check_tensor(t_in, "t", 4, t_in);
  const int64_t rows = toeplitz_rows(t_in, columns);
  const ToeplitzShape shape{t_in.size(0), 0, t_in.size(1), t_in.size(2), rows, columns, transposed, reflected};
  const Tensor t = torch::stable::contiguous(t_in);
  const bool empty = t.numel() == 0;
  Tensor spectrum = empty_spectrum(t, empty ? 0 : Kernels::spectrum_size(shape, t));
  if (!empty) Kernels::spectrum(shape, t, spectrum.mutable_data_ptr());
  return spectrum;
}

template <class Kernels>
Tensor toeplitz_by_spectrum(const Tensor& x_in, const Tensor& spectrum, const std::optional<Tensor>& base_in,
                            int64_t outputs, int64_t inputs, int64_t rows, int64_t columns, double scale,
                            bool reflected) {
  check_tensor(x_in, "x", 3, x_in);
  STD_TORCH_CHECK(outputs > 0 && inputs > 0 && rows > 0 && columns > 0,
                  "surm_kernels: outputs, inputs, rows and columns must be positive");
  check_size("x.shape[2]", x_in.size(2), inputs * columns);
  const ToeplitzShape shape{x_in.size(0), x_in.size(1), outputs, inputs, rows, columns, false, reflected};
  const Tensor x = with_contiguous_rows(x_in);
  Tensor y = Kernels::empty_rows(x, {shape.groups, shape.tokens, outputs * rows});
  const Base base(base_in, y);
  if (y.numel() > 0) {
    check_spectrum(spectrum, x);
    const bool fits = Kernels::matmul_by_spectrum(shape, x, spectrum, base.rows(), scale, y.mutable_data_ptr());
    STD_TORCH_CHECK(fits, "surm_kernels: spectrum belongs to other sizes");
  }
  return y;
}

template <class Kernels>
Tensor toeplitz_pullback(const Tensor& g_in, const Tensor& x_in, int64_t rows, int64_t columns, double scale,
                         bool reflected) {
  check_tensor(g_in, "g", 3, x_in);
  check_tensor(x_in, "x", 3, x_in);
  STD_TORCH_CHECK(rows > 0 && g_in.size(2) % rows == 0, "surm_kernels: rows must divide the last dimension of g, got ",
                  rows);
  STD_TORCH_CHECK(columns > 0 && x_in.size(2) % columns == 0,
                  "surm_kernels: columns must divide the last dimension of x, got ", columns);
  for (int64_t d = 0; d < 2; ++d) check_size("a size of g", g_in.size(d), x_in.size(d));
  const Tensor g = with_contiguous_rows(g_in), x = with_contiguous_rows(x_in);
  const ToeplitzShape shape{x.size(0), x.size(1), g.size(2) / rows, x.size(2) / columns, rows,
                            columns,   false,     reflected};
  Tensor t_gradient = empty(x, {shape.groups, shape.out_blocks, shape.in_blocks, rows + columns - 1});
  if (t_gradient.numel() > 0) {
    Kernels::backward(shape, g, x, nullptr, scale, nullptr, t_gradient.mutable_data_ptr());
  }
  return t_gradient;
}

template <class Kernels>
std::tuple<Tensor, Tensor> toeplitz_backward(const Tensor& g_in, const Tensor& x_in, const Tensor& t_in,
                                             int64_t columns, double scale, bool reflected) {
  check_tensor(g_in, "g", 3, x_in);
  check_tensor(x_in, "x", 3, x_in);
  const ToeplitzShape shape = toeplitz_shape(t_in, x_in, columns, false, reflected);
  for (int64_t d = 0; d < 2; ++d) check_size("a size of g", g_in.size(d), x_in.size(d));
  check_size("x.shape[0]", x_in.size(0), shape.groups);
  check_size("x.shape[2]", x_in.size(2), shape.in_blocks * shape.columns);
  check_size("g.shape[2]", g_in.size(2), shape.out_blocks * shape.rows);
  const Tensor g = with_contiguous_rows(g_in), x = with_contiguous_rows(x_in), t = torch::stable::contiguous(t_in);
  Tensor x_gradient = Kernels::empty_rows(x, {x.size(0), x.size(1), x.size(2)});
  Tensor t_gradient = empty(t, {t.size(0), t.size(1), t.size(2), t.size(3)});
  if (t_gradient.numel() > 0) {
    Kernels::backward(shape, g, x, t.const_data_ptr(), scale, x_gradient.mutable_data_ptr(),
                      t_gradient.mutable_data_ptr());
  }
  return {x_gradient, t_gradient};
}

template <class Kernels>
Tensor toeplitz_dense(const Tensor& t_in, int64_t columns, bool reflected) {
  check_tensor(t_in, "t", 4, t_in);
  const int64_t rows = toeplitz_rows(t_in, columns);
  const ToeplitzShape shape{t_in.size(0), 0, t_in.size(1), t_in.size(2), rows, columns, false, reflected};
  const Tensor t = torch::stable::contiguous(t_in);
  Tensor w = Kernels::empty_rows(t, {shape.groups, shape.out_blocks * rows, shape.in_blocks * columns});
  if (w.numel() > 0) Kernels::dense(shape, t, w.mutable_data_ptr());
  return w;
}

template <class Kernels>
Tensor toeplitz_dense_adjoint(const Tensor& w_in, int64_t rows, int64_t columns, bool reflected) {
  check_tensor(w_in, "w", 3, w_in);
  STD_TORCH_CHECK(rows > 0 && w_in.size(1) % rows == 0, "surm_kernels: rows must divide the rows of w, got ", rows,
                  " and ", w_in.size(1));
  STD_TORCH_CHECK(columns > 0 && w_in.size(2) % columns == 0,
                  "surm_kernels: columns must divide the columns of w, got ", columns, " and ", w_in.size(2));
  const ToeplitzShape shape{w_in.size(0), 0,        w_in.size(1) / rows, w_in.size(2) / columns, rows, columns,
                            false,        reflected};
  const Tensor w = torch::stable::contiguous(w_in);
  Tensor t = empty(w, {shape.groups, shape.out_blocks, shape.in_blocks, rows + columns - 1});
  if (t.numel() > 0) Kernels::dense_adjoint(shape, w, t.mutable_data_ptr());
  return t;
}

template <class Kernels>
void toeplitz_merge(const Tensor& weight_in, const Tensor& t_in, int64_t columns, bool reflected, double scale,
                    Tensor out) {
  STD_TORCH_CHECK(t_in.dim() == 3, "surm_kernels: t must have 3 dimensions, got ", t_in.dim());
  check_device(t_in, "t", out);
  const int64_t rows = toeplitz_rows(t_in, columns);
  const ToeplitzShape shape{1, 0, t_in.size(0), t_in.size(1), rows, columns, false, reflected};
  const Tensor weight = with_contiguous_rows(weight_in), t = torch::stable::contiguous(t_in);
  const Merge merge = merge_of(weight, out, shape.out_blocks * rows, shape.in_blocks * columns);
  if (out.numel() > 0) Kernels::merge(shape, t, scale, merge);
}

template <class Kernels>
void implement_toeplitz(torch::stable::detail::StableLibrary& m) {
  m.impl("toeplitz", TORCH_BOX(&toeplitz<Kernels>));
  m.impl("toeplitz_pullback", TORCH_BOX(&toeplitz_pullback<Kernels>));
  m.impl("toeplitz_backward", TORCH_BOX(&toeplitz_backward<Kernels>));
  m.impl("toeplitz_dense", TORCH_BOX(&toeplitz_dense<Kernels>));
  m.impl("toeplitz_dense_adjoint", TORCH_BOX(&toeplitz_dense_adjoint<Kernels>));
  m.impl("toeplitz_spectrum", TORCH_BOX(&toeplitz_spectrum<Kernels>));
  m.impl("toeplitz_by_spectrum", TORCH_BOX(&toeplitz_by_spectrum<Kernels>));
  m.impl("toeplitz_merge", TORCH_BOX(&toeplitz_merge<Kernels>));
}

}  // namespace surm::glue
