// The krylov operators over the kernels of any device: checks and allocation. `Kernels` is CpuKernels or CudaKernels.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "glue.h"
#include "merge.h"
#include "spectrum.h"

namespace surm::glue {

inline KrylovShape krylov_shape(const Tensor& v, int64_t tokens, int64_t sign, bool transposed) {
  check_sign(sign);
  return {v.size(0), tokens, v.size(1), v.size(2), v.size(3), static_cast<int>(sign), transposed};
}

template <class Kernels>
Tensor krylov(const Tensor& x_in, const Tensor& v_in, const std::optional<Tensor>& base_in, int64_t sign, double scale,
              bool transposed) {
  check_tensor(v_in, "v", 4, x_in);
  check_tensor(x_in, "x", 3, x_in);
  const KrylovShape shape = krylov_shape(v_in, x_in.size(1), sign, transposed);
  check_size("x.shape[0]", x_in.size(0), shape.groups);
  check_size("x.shape[2]", x_in.size(2), (transposed ? shape.out_blocks : shape.in_blocks) * shape.block);
  const Tensor x = with_contiguous_rows(x_in), v = torch::stable::contiguous(v_in);
  const int64_t width = (transposed ? shape.in_blocks : shape.out_blocks) * shape.block;
  Tensor y = Kernels::empty_rows(x, {shape.groups, shape.tokens, width});
  const Base base(base_in, y);
  if (y.numel() > 0) Kernels::matmul(shape, x, v.const_data_ptr(), base.rows(), scale, y.mutable_data_ptr());
  return y;
}

template <class Kernels>
Tensor krylov_spectrum(const Tensor& v_in, int64_t sign, bool transposed) {
  check_tensor(v_in, "v", 4, v_in);
  const KrylovShape shape = krylov_shape(v_in, 0, sign, transposed);
  const Tensor v = torch::stable::contiguous(v_in);
  const bool empty = v.numel() == 0;
  Tensor spectrum = empty_spectrum(v, empty ? 0 : Kernels::spectrum_size(shape, v));
  if (!empty) Kernels::spectrum(shape, v, spectrum.mutable_data_ptr());
  return spectrum;
}

template <class Kernels>
Tensor krylov_by_spectrum(const Tensor& x_in, const Tensor& spectrum, const std::optional<Tensor>& base_in,
                          int64_t outputs, int64_t inputs, int64_t block, int64_t sign, double scale) {
  check_tensor(x_in, "x", 3, x_in);
  check_sign(sign);
  STD_TORCH_CHECK(outputs > 0 && inputs > 0 && block > 0, "surm_kernels: outputs, inputs and block must be positive");
  check_size("x.shape[2]", x_in.size(2), inputs * block);
  const KrylovShape shape{x_in.size(0), x_in.size(1), outputs, inputs, block, static_cast<int>(sign), false};
  const Tensor x = with_contiguous_rows(x_in);
  Tensor y = Kernels::empty_rows(x, {shape.groups, shape.tokens, outputs * block});
  const Base base(base_in, y);
  if (y.numel() > 0) {
    check_spectrum(spectrum, x);
    const bool fits = Kernels::matmul_by_spectrum(shape, x, spectrum, base.rows(), scale, y.mutable_data_ptr());
    STD_TORCH_CHECK(fits, "surm_kernels: spectrum belongs to other sizes");
  }
  return y;
}

// Both gradients of scale · ⟨g, x W(v)ᵀ⟩; `v` may be missing, then only the second is made.
template <class Kernels>
void krylov_gradients(const Tensor& g_in, const Tensor& x_in, const Tensor* v_in, const KrylovShape& shape,
                      double scale, Tensor* x_gradient, Tensor& v_gradient) {
  const Tensor g = with_contiguous_rows(g_in), x = with_contiguous_rows(x_in);
  Tensor v;
  if (v_in != nullptr) v = torch::stable::contiguous(*v_in);
  if (v_gradient.numel() == 0) return;
  Kernels::backward(shape, g, x, v_in != nullptr ? v.const_data_ptr() : nullptr, scale,
                    x_gradient != nullptr ? x_gradient->mutable_data_ptr() : nullptr, v_gradient.mutable_data_ptr());
}

template <class Kernels>
Tensor krylov_pullback(const Tensor& g, const Tensor& x, int64_t block, int64_t sign, double scale) {
  check_sign(sign);
  check_tensor(g, "g", 3, x);
  check_tensor(x, "x", 3, x);
  STD_TORCH_CHECK(block > 0 && g.size(2) % block == 0 && x.size(2) % block == 0,
                  "surm_kernels: block must divide the last dimensions of g and x, got ", block);
  check_size("g.shape[0]", g.size(0), x.size(0));
  check_size("g.shape[1]", g.size(1), x.size(1));
  const KrylovShape shape{x.size(0), x.size(1), g.size(2) / block, x.size(2) / block, block, static_cast<int>(sign),
                          false};
  Tensor v_gradient = empty(x, {shape.groups, shape.out_blocks, shape.in_blocks, block});
  krylov_gradients<Kernels>(g, x, nullptr, shape, scale, nullptr, v_gradient);
  return v_gradient;
}

template <class Kernels>
std::tuple<Tensor, Tensor> krylov_backward(const Tensor& g, const Tensor& x, const Tensor& v, int64_t sign,
                                           double scale, bool transposed) {
  check_tensor(g, "g", 3, x);
  check_tensor(x, "x", 3, x);
  check_tensor(v, "v", 4, x);
  const KrylovShape shape = krylov_shape(v, x.size(1), sign, transposed);
  for (int64_t d = 0; d < 2; ++d) check_size("a size of g", g.size(d), x.size(d));
  check_size("x.shape[0]", x.size(0), shape.groups);
  check_size("x.shape[2]", x.size(2), (transposed ? shape.out_blocks : shape.in_blocks) * shape.block);
  check_size("g.shape[2]", g.size(2), (transposed ? shape.in_blocks : shape.out_blocks) * shape.block);
  Tensor x_gradient = Kernels::empty_rows(x, {x.size(0), x.size(1), x.size(2)});
  Tensor v_gradient = empty(x, {shape.groups, shape.out_blocks, shape.in_blocks, shape.block});
  krylov_gradients<Kernels>(g, x, &v, shape, scale, &x_gradient, v_gradient);
  return {x_gradient, v_gradient};
}

template <class Kernels>
Tensor krylov_dense(const Tensor& v_in, int64_t sign) {
  check_tensor(v_in, "v", 4, v_in);
  const KrylovShape shape = krylov_shape(v_in, 0, sign, false);
  const Tensor v = torch::stable::contiguous(v_in);
  Tensor w = Kernels::empty_rows(v, {shape.groups, shape.out_blocks * shape.block, shape.in_blocks * shape.block});
  if (w.numel() > 0) Kernels::dense(shape, v, w.mutable_data_ptr());
  return w;
}

template <class Kernels>
Tensor krylov_dense_adjoint(const Tensor& w_in, int64_t block, int64_t sign) {
  check_sign(sign);
  check_tensor(w_in, "w", 3, w_in);
  STD_TORCH_CHECK(block > 0 && w_in.size(1) % block == 0 && w_in.size(2) % block == 0,
                  "surm_kernels: block must divide both sizes of w, got ", block);
  const KrylovShape shape{w_in.size(0),           0,    w_in.size(1) / block, w_in.size(2) / block, block,
                          static_cast<int>(sign), false};
  const Tensor w = torch::stable::contiguous(w_in);
  Tensor v = empty(w, {shape.groups, shape.out_blocks, shape.in_blocks, block});
  if (v.numel() > 0) Kernels::dense_adjoint(shape, w, v.mutable_data_ptr());
  return v;
}

template <class Kernels>
void krylov_merge(const Tensor& weight_in, const Tensor& v_in, int64_t sign, double scale, Tensor out) {
  STD_TORCH_CHECK(v_in.dim() == 3, "surm_kernels: v must have 3 dimensions, got ", v_in.dim());
  check_sign(sign);
  check_device(v_in, "v", out);
  const KrylovShape shape{1, 0, v_in.size(0), v_in.size(1), v_in.size(2), static_cast<int>(sign), false};
  const Tensor weight = with_contiguous_rows(weight_in), v = torch::stable::contiguous(v_in);
  const Merge merge = merge_of(weight, out, shape.out_blocks * shape.block, shape.in_blocks * shape.block);
  if (out.numel() > 0) Kernels::merge(shape, v, scale, merge);
}

template <class Kernels>
void implement_krylov(torch::stable::detail::StableLibrary& m) {
  m.impl("krylov", TORCH_BOX(&krylov<Kernels>));
  m.impl("krylov_pullback", TORCH_BOX(&krylov_pullback<Kernels>));
  m.impl("krylov_backward", TORCH_BOX(&krylov_backward<Kernels>));
  m.impl("krylov_dense", TORCH_BOX(&krylov_dense<Kernels>));
  m.impl("krylov_dense_adjoint", TORCH_BOX(&krylov_dense_adjoint<Kernels>));
  m.impl("krylov_spectrum", TORCH_BOX(&krylov_spectrum<Kernels>));
  m.impl("krylov_by_spectrum", TORCH_BOX(&krylov_by_spectrum<Kernels>));
  m.impl("krylov_merge", TORCH_BOX(&krylov_merge<Kernels>));
}

}  // namespace surm::glue
