// The ldr operators over the kernels of any device: checks and allocation. `Kernels` is CpuKernels or CudaKernels.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "glue.h"

namespace surm::glue {

// `like` has the generators' shape; g and x, or what takes their place, have out_size and in_size values.
inline LdrShape ldr_shape(const Tensor& like, int64_t tokens, int64_t out_size, int64_t in_size, bool transposed,
                          bool reflected) {
  const int64_t n = like.size(2);
  STD_TORCH_CHECK(out_size > 0 && out_size <= n && in_size > 0 && in_size <= n, "surm_kernels: rows must have 1 to ", n,
                  " values, got ", in_size, " and ", out_size);
  return {like.size(0), tokens, like.size(1), n, out_size, in_size, transposed, reflected};
}

inline void check_generator(const Tensor& generator, const char* name, const Tensor& x) {
  check_tensor(generator, name, 3, x);
  check_size("a generator's groups", generator.size(0), x.size(0));
}

inline void check_same(const Tensor& left, const Tensor& right) {
  for (int64_t d = 0; d < 3; ++d) check_size("a size of right", right.size(d), left.size(d));
}

template <class Kernels>
Tensor ldr(const Tensor& x_in, const Tensor& left_in, const Tensor& right_in, const std::optional<Tensor>& base_in,
           int64_t width, double scale, bool transposed, bool reflected) {
  check_tensor(x_in, "x", 3, x_in);
  check_generator(left_in, "left", x_in);
  check_generator(right_in, "right", x_in);
  check_same(left_in, right_in);
  const int64_t out_size = transposed ? x_in.size(2) : width, in_size = transposed ? width : x_in.size(2);
  const LdrShape shape = ldr_shape(left_in, x_in.size(1), out_size, in_size, transposed, reflected);
  const Tensor x = with_contiguous_rows(x_in);
  const Tensor left = made_contiguous(left_in), right = made_contiguous(right_in);
  Tensor y = Kernels::empty_rows(x, {shape.groups, shape.tokens, width});
  const Base base(base_in, y);
  if (y.numel() > 0) {
    Kernels::matmul(shape, x, left.const_data_ptr(), right.const_data_ptr(), base.rows(), scale, y.mutable_data_ptr());
  }
  return y;
}

// The gradients of scale · ⟨g, x Wᵀ⟩ that are asked for, `left` and `right` where they are needed for them.
template <class Kernels>
void ldr_gradients(const Tensor& g_in, const Tensor& x_in, const Tensor* left_in, const Tensor* right_in, double scale,
                   bool reflected, Tensor* x_gradient, Tensor* left_gradient, Tensor* right_gradient) {
  check_tensor(g_in, "g", 3, x_in);
  check_tensor(x_in, "x", 3, x_in);
  for (int64_t d = 0; d < 2; ++d) check_size("a size of g", g_in.size(d), x_in.size(d));
  if (left_in != nullptr) check_generator(*left_in, "left", x_in);
  if (right_in != nullptr) check_generator(*right_in, "right", x_in);
  if (left_in != nullptr && right_in != nullptr) check_same(*left_in, *right_in);
  const Tensor& like = left_in != nullptr ? *left_in : *right_in;
  const LdrShape shape = ldr_shape(like, x_in.size(1), g_in.size(2), x_in.size(2), false, reflected);
  const Tensor g = with_contiguous_rows(g_in), x = with_contiguous_rows(x_in);
  Tensor left, right;
  if (left_in != nullptr) left = made_contiguous(*left_in);
  if (right_in != nullptr) right = made_contiguous(*right_in);
  if (x_gradient != nullptr) *x_gradient = Kernels::empty_rows(x, {x.size(0), x.size(1), x.size(2)});
  if (left_gradient != nullptr) *left_gradient = empty(x, {shape.groups, shape.rank, shape.size});
  if (right_gradient != nullptr) *right_gradient = empty(x, {shape.groups, shape.rank, shape.size});
  if (shape.groups * shape.rank == 0) return;
  const auto data = [](Tensor* tensor) { return tensor != nullptr ? tensor->mutable_data_ptr() : nullptr; };
  Kernels::backward(shape, g, x, left_in != nullptr ? left.const_data_ptr() : nullptr,
                    right_in != nullptr ? right.const_data_ptr() : nullptr, scale, data(x_gradient),
                    data(left_gradient), data(right_gradient));
}

template <class Kernels>
Tensor ldr_pullback_left(const Tensor& g, const Tensor& x, const Tensor& right, double scale, bool reflected) {
  Tensor left_gradient;
  ldr_gradients<Kernels>(g, x, nullptr, &right, scale, reflected, nullptr, &left_gradient, nullptr);
  return left_gradient;
}

template <class Kernels>
Tensor ldr_pullback_right(const Tensor& g, const Tensor& x, const Tensor& left, double scale, bool reflected) {
  Tensor right_gradient;
  ldr_gradients<Kernels>(g, x, &left, nullptr, scale, reflected, nullptr, nullptr, &right_gradient);
  return right_gradient;
}

template <class Kernels>
std::tuple<Tensor, Tensor, Tensor> ldr_backward(const Tensor& g, const Tensor& x, const Tensor& left,
                                                const Tensor& right, double scale, bool reflected) {
  Tensor x_gradient, left_gradient, right_gradient;
  ldr_gradients<Kernels>(g, x, &left, &right, scale, reflected, &x_gradient, &left_gradient, &right_gradient);
  return {x_gradient, left_gradient, right_gradient};
}

template <class Kernels>
void implement_ldr(torch::stable::detail::StableLibrary& m) {
  m.impl("ldr", SURM_BOX(ldr<Kernels>));
  m.impl("ldr_pullback_left", SURM_BOX(ldr_pullback_left<Kernels>));
  m.impl("ldr_pullback_right", SURM_BOX(ldr_pullback_right<Kernels>));
  m.impl("ldr_backward", SURM_BOX(ldr_backward<Kernels>));
}

}  // namespace surm::glue
