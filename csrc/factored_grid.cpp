// Grids as an adapted layer calls them, on the CPU: rows without groups, a bias for a base, and values that may be the
// product of two factors. What a layer would do in Python around the grid operators takes longer than few tokens do.
#include <torch/csrc/stable/library.h>

#include <array>
#include <vector>

#include "cpu/instruction_set.h"
#include "grid_operators.h"

using namespace surm::glue;

namespace {

Tensor product(const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(a), torch::stable::detail::from(b)};
  in_words_of_torch(a, [&] {
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul", "Tensor", stack.data(), TORCH_ABI_VERSION));
  });
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor values_of(const Tensor& v, const std::optional<Tensor>& factor) {
  if (!factor.has_value()) return made_contiguous(v);
  check_tensor(*factor, "factor", v.dim(), v);
  for (int64_t d = 0; d < v.dim(); ++d) check_size("a size of factor", factor->size(d), v.size(d));
  return made_contiguous(product(v, *factor));
}

surm::ConstRows rows_without_groups(const Tensor& x) { return {x.const_data_ptr(), 0, x.stride(0)}; }

// One block for v (values), a grid for v (M, K, values).
surm::GridShape shape_of_factors(const Tensor& x, const Tensor& v, int64_t kind, int64_t columns) {
  check_tensor(x, "x", 2, x);
  STD_TORCH_CHECK(v.dim() == 1 || v.dim() == 3, "surm_kernels: v must have 1 or 3 dimensions, got ", v.dim());
  check_tensor(v, "v", v.dim(), x);
  const bool blocks = v.dim() == 3;
  const int64_t rows = rows_of_block(block_kind(kind), v.size(v.dim() - 1), columns);
  STD_TORCH_CHECK(rows > 0, "surm_kernels: no block of kind ", kind, " has ", v.size(v.dim() - 1), " values and ",
                  columns, " columns");
  surm::GridShape shape{1,    x.size(0), blocks ? v.size(0) : 1, blocks ? v.size(1) : 1,
                        rows, columns,   block_kind(kind),       false};
  check_size("x.shape[1]", x.size(1), shape.width());
  return shape;
}

Tensor factored_grid(const Tensor& x_in, const Tensor& v, const std::optional<Tensor>& factor,
                     const std::optional<Tensor>& bias_in, int64_t kind, int64_t columns, double scale) {
  const surm::GridShape shape = shape_of_factors(x_in, v, kind, columns);
  const Tensor x = with_contiguous_rows(x_in), values = values_of(v, factor);
  Tensor y = empty_rows(x, {shape.tokens, shape.height()});
  surm::ConstRows base;
  std::optional<Tensor> bias;
  if (bias_in.has_value()) {
    check_tensor(*bias_in, "bias", 1, x);
    check_size("bias.shape[0]", bias_in->size(0), shape.height());
    bias = made_contiguous(*bias_in);
    base = {bias->const_data_ptr(), 0, 0};
  }
  if (y.numel() > 0) {
    surm::cpu::instruction_set().grid->matmul(storage_type(x), shape, rows_without_groups(x), values.const_data_ptr(),
                                              base, scale, y.mutable_data_ptr(), parallel_for);
  }
  return y;
}

std::vector<Tensor> factored_grid_gradients(const Tensor& g_in, const Tensor& x_in, const Tensor& v,
                                            const std::optional<Tensor>& factor, int64_t kind, int64_t columns,
                                            double scale, bool input_gradient) {
  const surm::GridShape shape = shape_of_factors(x_in, v, kind, columns);
  check_tensor(g_in, "g", 2, x_in);
  check_size("g.shape[0]", g_in.size(0), shape.tokens);
  check_size("g.shape[1]", g_in.size(1), shape.height());
  const Tensor g = with_contiguous_rows(g_in), x = with_contiguous_rows(x_in);
  std::vector<Tensor> gradients;
  Tensor gradient = torch::stable::empty_like(made_contiguous(v));
  if (input_gradient) gradients.push_back(empty_rows(x, {x.size(0), x.size(1)}));
  if (gradient.numel() > 0) {
    std::optional<Tensor> values;  // a pullback needs none
    if (input_gradient) values = values_of(v, factor);
    surm::cpu::instruction_set().grid->backward(storage_type(x), shape, rows_without_groups(g), rows_without_groups(x),
                                                values.has_value() ? values->const_data_ptr() : nullptr, scale,
                                                input_gradient ? gradients[0].mutable_data_ptr() : nullptr,
                                                gradient.mutable_data_ptr(), parallel_for);
  }
  if (factor.has_value()) {
    gradients.push_back(product(gradient, *factor));
    gradients.push_back(product(gradient, v));
  } else {
    gradients.push_back(gradient);
  }
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SURM_NAMESPACE, CPU, m) {
  m.impl("factored_grid", SURM_BOX(factored_grid));
  m.impl("factored_grid_gradients", SURM_BOX(factored_grid_gradients));
}
