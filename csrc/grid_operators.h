// The grid operators over the kernels of any device: checks and allocation. `Kernels` is CpuKernels or CudaKernels.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "glue.h"
#include "merge.h"
#include "plan/block_kinds.h"
#include "spectrum.h"

namespace surm::glue {

inline BlockKind block_kind(int64_t kind) {
  STD_TORCH_CHECK(kind >= 0 && kind < kBlockKinds, "surm_kernels: kind must be from 0 to ", kBlockKinds - 1, ", got ",
                  kind);
  return static_cast<BlockKind>(kind);
}

// A grid with these values, (…, M, K, values of a block).
inline GridShape shape_of_values(const Tensor& values, int64_t groups, int64_t tokens, int64_t kind, int64_t columns,
                                 bool transposed) {
  const int64_t last = values.dim() - 1, count = values.size(last);
  const int64_t rows = rows_of_block(block_kind(kind), count, columns);
  STD_TORCH_CHECK(rows > 0, "surm_kernels: no block of kind ", kind, " has ", count, " values and ", columns,
                  " columns");
  return {groups, tokens, values.size(last - 2), values.size(last - 1), rows, columns, block_kind(kind), transposed};
}

// A grid of `height` × `width` in all, of blocks of so many rows and columns.
inline GridShape shape_of_blocks(int64_t groups, int64_t tokens, int64_t height, int64_t width, int64_t kind,
                                 int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(Block(block_kind(kind), rows, columns).exists(), "surm_kernels: no block of kind ", kind, " is ",
                  rows, " x ", columns);
  STD_TORCH_CHECK(height % rows == 0 && width % columns == 0, "surm_kernels: blocks of ", rows, " x ", columns,
                  " must divide the matrix of ", height, " x ", width);
  return {groups, tokens, height / rows, width / columns, rows, columns, block_kind(kind), false};
}

// The shape of a product with rows x. The values have the type of x or, where that has 16 bits, may be float32.
inline GridShape shape_of_product(const Tensor& x, const Tensor& values, int64_t kind, int64_t columns,
                                  bool transposed) {
  check_tensor(x, "x", 3, x);
  STD_TORCH_CHECK(values.dim() == 4, "surm_kernels: values must have 4 dimensions, got ", values.dim());
  check_device(values, "values", x);
  GridShape shape = shape_of_values(values, values.size(0), x.size(1), kind, columns, transposed);
  shape.wide = values.scalar_type() == ScalarType::Float && x.element_size() == 2;
  STD_TORCH_CHECK(shape.wide || values.scalar_type() == x.scalar_type(),
                  "surm_kernels: values has another dtype than the rest");
  check_size("x.shape[0]", x.size(0), shape.groups);
  check_size("x.shape[2]", x.size(2), transposed ? shape.height() : shape.width());
  return shape;
}

template <class Kernels>
Tensor grid(const Tensor& x_in, const Tensor& values_in, const std::optional<Tensor>& base_in, int64_t kind,
            int64_t columns, double scale, bool transposed) {
  const GridShape shape = shape_of_product(x_in, values_in, kind, columns, transposed);
  const Tensor x = with_contiguous_rows(x_in), values = made_contiguous(values_in);
  Tensor y = Kernels::empty_rows(x, {shape.groups, shape.tokens, transposed ? shape.width() : shape.height()});
  const Base base(base_in, y);
  if (y.numel() > 0) Kernels::matmul(shape, x, values.const_data_ptr(), base.rows(), scale, y.mutable_data_ptr());
  return y;
}

template <class Kernels>
Tensor grid_spectrum(const Tensor& values_in, int64_t kind, int64_t columns, bool transposed) {
  check_tensor(values_in, "values", 4, values_in);
  const GridShape shape = shape_of_values(values_in, values_in.size(0), 0, kind, columns, transposed);
  const Tensor values = made_contiguous(values_in);
  const bool empty = values.numel() == 0;
  Tensor spectrum = empty_spectrum(values, empty ? 0 : Kernels::spectrum_size(shape, values));
  if (!empty) Kernels::spectrum(shape, values, spectrum.mutable_data_ptr());
  return spectrum;
}

template <class Kernels>
Tensor grid_by_spectrum(const Tensor& x_in, const Tensor& spectrum, const std::optional<Tensor>& base_in, int64_t kind,
                        int64_t outputs, int64_t inputs, int64_t rows, int64_t columns, double scale) {
  check_tensor(x_in, "x", 3, x_in);
  STD_TORCH_CHECK(outputs > 0 && inputs > 0, "surm_kernels: outputs and inputs must be positive");
  const GridShape shape =
      shape_of_blocks(x_in.size(0), x_in.size(1), outputs * rows, inputs * columns, kind, rows, columns);
  check_size("x.shape[2]", x_in.size(2), shape.width());
  const Tensor x = with_contiguous_rows(x_in);
  Tensor y = Kernels::empty_rows(x, {shape.groups, shape.tokens, shape.height()});
  const Base base(base_in, y);
  if (y.numel() > 0) {
    check_spectrum(spectrum, x);
    const bool fits = Kernels::matmul_by_spectrum(shape, x, spectrum, base.rows(), scale, y.mutable_data_ptr());
    STD_TORCH_CHECK(fits, "surm_kernels: spectrum belongs to other sizes");
  }
  return y;
}

template <class Kernels>
Tensor grid_pullback(const Tensor& g_in, const Tensor& x_in, int64_t kind, int64_t rows, int64_t columns,
                     double scale) {
  check_tensor(g_in, "g", 3, x_in);
  check_tensor(x_in, "x", 3, x_in);
  for (int64_t d = 0; d < 2; ++d) check_size("a size of g", g_in.size(d), x_in.size(d));
  const Tensor g = with_contiguous_rows(g_in), x = with_contiguous_rows(x_in);
  const GridShape shape = shape_of_blocks(x.size(0), x.size(1), g.size(2), x.size(2), kind, rows, columns);
  Tensor gradient = empty(x, {shape.groups, shape.out_blocks, shape.in_blocks, Block(shape).count()});
  if (gradient.numel() > 0) Kernels::backward(shape, g, x, nullptr, scale, nullptr, gradient.mutable_data_ptr());
  return gradient;
}

template <class Kernels>
std::tuple<Tensor, Tensor> grid_backward(const Tensor& g_in, const Tensor& x_in, const Tensor& values_in, int64_t kind,
                                         int64_t columns, double scale, bool transposed) {
  const GridShape shape = shape_of_product(x_in, values_in, kind, columns, transposed);
  check_tensor(g_in, "g", 3, x_in);
  for (int64_t d = 0; d < 2; ++d) check_size("a size of g", g_in.size(d), x_in.size(d));
  check_size("g.shape[2]", g_in.size(2), transposed ? shape.width() : shape.height());
  const Tensor g = with_contiguous_rows(g_in), x = with_contiguous_rows(x_in);
  const Tensor values = made_contiguous(values_in);
  Tensor x_gradient = Kernels::empty_rows(x, {x.size(0), x.size(1), x.size(2)});
  Tensor gradient = empty(values, {values.size(0), values.size(1), values.size(2), values.size(3)});
  if (gradient.numel() > 0) {
    Kernels::backward(shape, g, x, values.const_data_ptr(), scale, x_gradient.mutable_data_ptr(),
                      gradient.mutable_data_ptr());
  }
  return {x_gradient, gradient};
}

template <class Kernels>
Tensor grid_dense(const Tensor& values_in, int64_t kind, int64_t columns) {
  check_tensor(values_in, "values", 4, values_in);
  const GridShape shape = shape_of_values(values_in, values_in.size(0), 0, kind, columns, false);
  const Tensor values = made_contiguous(values_in);
  Tensor w = Kernels::empty_rows(values, {shape.groups, shape.height(), shape.width()});
  if (w.numel() > 0) Kernels::dense(shape, values, w.mutable_data_ptr());
  return w;
}

template <class Kernels>
Tensor grid_dense_adjoint(const Tensor& w_in, int64_t kind, int64_t rows, int64_t columns) {
  check_tensor(w_in, "w", 3, w_in);
  const GridShape shape = shape_of_blocks(w_in.size(0), 0, w_in.size(1), w_in.size(2), kind, rows, columns);
  const Tensor w = made_contiguous(w_in);
  Tensor values = empty(w, {shape.groups, shape.out_blocks, shape.in_blocks, Block(shape).count()});
  if (values.numel() > 0) Kernels::dense_adjoint(shape, w, values.mutable_data_ptr());
  return values;
}

template <class Kernels>
void grid_merge(const Tensor& weight_in, const Tensor& values_in, int64_t kind, int64_t columns, double scale,
                const std::optional<Tensor>& key, Tensor out) {
  STD_TORCH_CHECK(values_in.dim() == 3, "surm_kernels: values must have 3 dimensions, got ", values_in.dim());
  check_device(values_in, "values", out);
  const GridShape shape = shape_of_values(values_in, 1, 0, kind, columns, false);
  const Tensor weight = with_contiguous_rows(weight_in), values = made_contiguous(values_in);
  const Merge merge = merge_of(weight, out, shape.height(), shape.width(), key);
  if (out.numel() > 0) Kernels::merge(shape, values, scale, merge);
}

template <class Kernels>
void implement_grid(torch::stable::detail::StableLibrary& m) {
  m.impl("grid", SURM_BOX(grid<Kernels>));
  m.impl("grid_pullback", SURM_BOX(grid_pullback<Kernels>));
  m.impl("grid_backward", SURM_BOX(grid_backward<Kernels>));
  m.impl("grid_dense", SURM_BOX(grid_dense<Kernels>));
  m.impl("grid_dense_adjoint", SURM_BOX(grid_dense_adjoint<Kernels>));
  m.impl("grid_spectrum", SURM_BOX(grid_spectrum<Kernels>));
  m.impl("grid_by_spectrum", SURM_BOX(grid_by_spectrum<Kernels>));
  m.impl("grid_merge", SURM_BOX(grid_merge<Kernels>));
}

}  // namespace surm::glue
