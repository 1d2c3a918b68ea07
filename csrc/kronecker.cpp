// The kronecker operators: glue between torch's tensors and the CPU kernels.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/instruction_set.h"
#include "glue.h"

using surm::cpu::KroneckerShape;
using namespace surm::glue;

namespace {

KroneckerShape shape_of(const Tensor& x, const Tensor& a, const Tensor& b, bool transposed) {
  check_tensor(x, "x", 3, x);
  check_tensor(a, "a", 3, x);
  check_tensor(b, "b", 3, x);
  check_size("a.shape[0]", a.size(0), x.size(0));
  check_size("b.shape[0]", b.size(0), x.size(0));
  const KroneckerShape shape{x.size(0), x.size(1), a.size(1), a.size(2), b.size(1), b.size(2), transposed};
  check_size("x.shape[2]", x.size(2), transposed ? shape.p * shape.r : shape.q * shape.s);
  return shape;
}

Tensor kronecker(const Tensor& x_in, const Tensor& a_in, const Tensor& b_in, const std::optional<Tensor>& base_in,
                 double scale, bool transposed) {
  const KroneckerShape shape = shape_of(x_in, a_in, b_in, transposed);
  const Tensor x = with_contiguous_rows(x_in);
  const Tensor a = made_contiguous(a_in), b = made_contiguous(b_in);
  Tensor y = empty_rows(x, {shape.groups, shape.tokens, transposed ? shape.q * shape.s : shape.p * shape.r});
  const Base base(base_in, y);
  if (y.numel() > 0) {
    surm::cpu::instruction_set().kronecker->matmul(storage_type(x), shape, rows_of(x), a.const_data_ptr(),
                                                   b.const_data_ptr(), base.rows(), scale, y.mutable_data_ptr(),
                                                   parallel_for);
  }
  return y;
}

void* data_of(Tensor* tensor) { return tensor != nullptr ? tensor->mutable_data_ptr() : nullptr; }

// The gradients of scale · ⟨g, x Wᵀ⟩ that are not null; `a` or `b` may be missing where cpu/kronecker.h says so.
void gradients(const Tensor& g_in, const Tensor& x_in, const Tensor* a_in, const Tensor* b_in,
               const KroneckerShape& shape, double scale, Tensor* x_gradient, Tensor* a_gradient, Tensor* b_gradient) {
  const Tensor g = with_contiguous_rows(g_in), x = with_contiguous_rows(x_in);
  Tensor a, b;
  if (a_in != nullptr) a = made_contiguous(*a_in);
  if (b_in != nullptr) b = made_contiguous(*b_in);
  surm::cpu::instruction_set().kronecker->backward(
      storage_type(x), shape, rows_of(g), rows_of(x), a_in != nullptr ? a.const_data_ptr() : nullptr,
      b_in != nullptr ? b.const_data_ptr() : nullptr, scale, data_of(x_gradient), data_of(a_gradient),
      data_of(b_gradient), parallel_for);
}

// The shape of a pullback that knows one of the factors, (…, rows, columns), and the sizes of g and x.
void check_pullback(const Tensor& g, const Tensor& x, const Tensor& factor, const char* name) {
  check_tensor(g, "g", 3, x);
  check_tensor(x, "x", 3, x);
  check_tensor(factor, name, 3, x);
  for (int64_t d = 0; d < 2; ++d) check_size("a size of g", g.size(d), x.size(d));
  check_size("the number of groups of a factor", factor.size(0), x.size(0));
  STD_TORCH_CHECK(factor.size(1) > 0 && g.size(2) % factor.size(1) == 0, "surm_kernels: the rows of ", name,
                  " must divide the last dimension of g, got ", factor.size(1), " and ", g.size(2));
  STD_TORCH_CHECK(factor.size(2) > 0 && x.size(2) % factor.size(2) == 0, "surm_kernels: the columns of ", name,
                  " must divide the last dimension of x, got ", factor.size(2), " and ", x.size(2));
}

Tensor kronecker_pullback_left(const Tensor& g, const Tensor& x, const Tensor& b, double scale) {
  check_pullback(g, x, b, "b");
  const KroneckerShape shape{x.size(0), x.size(1), g.size(2) / b.size(1), x.size(2) / b.size(2), b.size(1),
                             b.size(2), false};
  Tensor a_gradient = empty(x, {shape.groups, shape.p, shape.q});
  if (a_gradient.numel() > 0) gradients(g, x, nullptr, &b, shape, scale, nullptr, &a_gradient, nullptr);
  return a_gradient;
}

Tensor kronecker_pullback_right(const Tensor& g, const Tensor& x, const Tensor& a, double scale) {
  check_pullback(g, x, a, "a");
  const KroneckerShape shape{x.size(0), x.size(1), a.size(1), a.size(2), g.size(2) / a.size(1), x.size(2) / a.size(2),
                             false};
  Tensor b_gradient = empty(x, {shape.groups, shape.r, shape.s});
  if (b_gradient.numel() > 0) gradients(g, x, &a, nullptr, shape, scale, nullptr, nullptr, &b_gradient);
  return b_gradient;
}

std::tuple<Tensor, Tensor, Tensor> kronecker_backward(const Tensor& g, const Tensor& x, const Tensor& a,
                                                      const Tensor& b, double scale) {
  const KroneckerShape shape = shape_of(x, a, b, false);
  check_tensor(g, "g", 3, x);
  for (int64_t d = 0; d < 2; ++d) check_size("a size of g", g.size(d), x.size(d));
  check_size("g.shape[2]", g.size(2), shape.p * shape.r);
  Tensor x_gradient = empty_rows(x, {shape.groups, shape.tokens, shape.q * shape.s});
  Tensor a_gradient = empty(x, {shape.groups, shape.p, shape.q});
  Tensor b_gradient = empty(x, {shape.groups, shape.r, shape.s});
  gradients(g, x, &a, &b, shape, scale, &x_gradient, &a_gradient, &b_gradient);
  return {x_gradient, a_gradient, b_gradient};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SURM_NAMESPACE, CPU, m) {
  m.impl("kronecker", SURM_BOX(kronecker));
  m.impl("kronecker_pullback_left", SURM_BOX(kronecker_pullback_left));
  m.impl("kronecker_pullback_right", SURM_BOX(kronecker_pullback_right));
  m.impl("kronecker_backward", SURM_BOX(kronecker_backward));
}
