// The toeplitz operators: glue between torch's tensors and the CPU kernels.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/instruction_set.h"
#include "glue.h"
#include "spectrum.h"

using surm::cpu::ToeplitzShape;
using namespace surm::glue;

namespace {

// t has the type of x or, where that has 16 bits, may be float32.
ToeplitzShape shape_of(const Tensor& t, const Tensor& x, int64_t columns, bool transposed, bool reflected) {
  STD_TORCH_CHECK(t.dim() == 4, "surm_kernels: t must have 4 dimensions, got ", t.dim());
  const bool wide = t.scalar_type() == ScalarType::Float && x.element_size() == 2;
  STD_TORCH_CHECK(wide || t.scalar_type() == x.scalar_type(), "surm_kernels: t has another dtype than the rest");
  STD_TORCH_CHECK(columns > 0 && columns <= t.size(3), "surm_kernels: columns must be 1 to ", t.size(3), ", got ",
                  columns);
  return {t.size(0), x.size(1), t.size(1), t.size(2), t.size(3) - columns + 1, columns, transposed, reflected, wide};
}

Tensor toeplitz(const Tensor& x_in, const Tensor& t_in, const std::optional<Tensor>& base_in, int64_t columns,
                double scale, bool transposed, bool reflected) {
  check_tensor(x_in, "x", 3, x_in);
  const ToeplitzShape shape = shape_of(t_in, x_in, columns, transposed, reflected);
  const int64_t in_width = shape.in_blocks * shape.columns, out_width = shape.out_blocks * shape.rows;
  check_size("x.shape[0]", x_in.size(0), shape.groups);
  check_size("x.shape[2]", x_in.size(2), transposed ? out_width : in_width);
  const Tensor x = with_contiguous_rows(x_in), t = torch::stable::contiguous(t_in);
  Tensor y = empty_rows(x, {shape.groups, shape.tokens, transposed ? in_width : out_width});
  const Base base(base_in, y);
  if (y.numel() > 0) {
    surm::cpu::instruction_set().toeplitz->matmul(storage_type(x), shape, rows_of(x), t.const_data_ptr(), base.rows(),
                                                  scale, y.mutable_data_ptr(), parallel_for);
  }
  return y;
}

Tensor toeplitz_spectrum(const Tensor& t_in, int64_t columns, bool transposed, bool reflected) {
  check_tensor(t_in, "t", 4, t_in);
  STD_TORCH_CHECK(columns > 0 && columns <= t_in.size(3), "surm_kernels: columns must be 1 to ", t_in.size(3), ", got ",
                  columns);
  const ToeplitzShape shape{t_in.size(0), 0,          t_in.size(1), t_in.size(2), t_in.size(3) - columns + 1,
                            columns,      transposed, reflected};
  const Tensor t = torch::stable::contiguous(t_in);
  const auto& kernels = *surm::cpu::instruction_set().toeplitz;
  const bool empty = t.numel() == 0;
  Tensor spectrum = empty_spectrum(t, empty ? 0 : kernels.spectrum_size(storage_type(t), shape));
  if (!empty) {
    kernels.spectrum(storage_type(t), shape, t.const_data_ptr(), spectrum.mutable_data_ptr(), parallel_for);
  }
  return spectrum;
}

Tensor toeplitz_by_spectrum(const Tensor& x_in, const Tensor& spectrum, const std::optional<Tensor>& base_in,
                            int64_t outputs, int64_t inputs, int64_t rows, int64_t columns, double scale,
                            bool reflected) {
  check_tensor(x_in, "x", 3, x_in);
  STD_TORCH_CHECK(outputs > 0 && inputs > 0 && rows > 0 && columns > 0,
                  "surm_kernels: outputs, inputs, rows and columns must be positive");
  check_size("x.shape[2]", x_in.size(2), inputs * columns);
  const ToeplitzShape shape{x_in.size(0), x_in.size(1), outputs, inputs, rows, columns, false, reflected};
  const Tensor x = with_contiguous_rows(x_in);
  Tensor y = empty_rows(x, {shape.groups, shape.tokens, outputs * rows});
  const Base base(base_in, y);
  if (y.numel() > 0) {
    const auto& kernels = *surm::cpu::instruction_set().toeplitz;
    check_spectrum(spectrum, x);
    const bool fits =
        kernels.matmul_by_spectrum(storage_type(x), shape, rows_of(x), spectrum.const_data_ptr(), spectrum.numel(),
                                   base.rows(), scale, y.mutable_data_ptr(), parallel_for);
    STD_TORCH_CHECK(fits, "surm_kernels: spectrum belongs to other sizes");
  }
  return y;
}

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
    surm::cpu::instruction_set().toeplitz->backward(storage_type(x), shape, rows_of(g), rows_of(x), nullptr, scale,
                                                    nullptr, t_gradient.mutable_data_ptr(), parallel_for);
  }
  return t_gradient;
}

std::tuple<Tensor, Tensor> toeplitz_backward(const Tensor& g_in, const Tensor& x_in, const Tensor& t_in,
                                             int64_t columns, double scale, bool reflected) {
  check_tensor(g_in, "g", 3, x_in);
  check_tensor(x_in, "x", 3, x_in);
  const ToeplitzShape shape = shape_of(t_in, x_in, columns, false, reflected);
  for (int64_t d = 0; d < 2; ++d) check_size("a size of g", g_in.size(d), x_in.size(d));
  check_size("x.shape[0]", x_in.size(0), shape.groups);
  check_size("x.shape[2]", x_in.size(2), shape.in_blocks * shape.columns);
  check_size("g.shape[2]", g_in.size(2), shape.out_blocks * shape.rows);
  const Tensor g = with_contiguous_rows(g_in), x = with_contiguous_rows(x_in), t = torch::stable::contiguous(t_in);
  Tensor x_gradient = empty_rows(x, {x.size(0), x.size(1), x.size(2)});
  Tensor t_gradient = empty(t, {t.size(0), t.size(1), t.size(2), t.size(3)});
  if (t_gradient.numel() > 0) {
    surm::cpu::instruction_set().toeplitz->backward(storage_type(x), shape, rows_of(g), rows_of(x), t.const_data_ptr(),
                                                    scale, x_gradient.mutable_data_ptr(), t_gradient.mutable_data_ptr(),
                                                    parallel_for);
  }
  return {x_gradient, t_gradient};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(surm_kernels, CPU, m) {
  m.impl("toeplitz", TORCH_BOX(&toeplitz));
  m.impl("toeplitz_spectrum", TORCH_BOX(&toeplitz_spectrum));
  m.impl("toeplitz_by_spectrum", TORCH_BOX(&toeplitz_by_spectrum));
  m.impl("toeplitz_pullback", TORCH_BOX(&toeplitz_pullback));
  m.impl("toeplitz_backward", TORCH_BOX(&toeplitz_backward));
}
