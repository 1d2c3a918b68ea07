// The toeplitz_dense and toeplitz_merge operators: glue between torch's tensors and the CPU kernels.
#include <torch/csrc/stable/library.h>

#include "cpu/instruction_set.h"
#include "glue.h"
#include "merge.h"

using surm::cpu::ToeplitzShape;
using namespace surm::glue;

namespace {

Tensor toeplitz_dense(const Tensor& t_in, int64_t columns, bool reflected) {
  check_tensor(t_in, "t", 4, t_in);
  const int64_t rows = t_in.size(3) + 1 - columns;
  STD_TORCH_CHECK(columns > 0 && rows > 0, "surm_kernels: columns must be from 1 to ", t_in.size(3), ", got ", columns);
  const ToeplitzShape shape{t_in.size(0), 0, t_in.size(1), t_in.size(2), rows, columns, false, reflected};
  const Tensor t = torch::stable::contiguous(t_in);
  Tensor w = empty_rows(t, {shape.groups, shape.out_blocks * rows, shape.in_blocks * columns});
  if (w.numel() > 0) {
    surm::cpu::instruction_set().toeplitz_dense->dense(storage_type(t), shape, t.const_data_ptr(), w.mutable_data_ptr(),
                                                       parallel_for);
  }
  return w;
}

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
  if (t.numel() > 0) {
    surm::cpu::instruction_set().toeplitz_dense->adjoint(storage_type(w), shape, w.const_data_ptr(),
                                                         t.mutable_data_ptr(), parallel_for);
  }
  return t;
}

void toeplitz_merge(const Tensor& weight_in, const Tensor& t_in, int64_t columns, bool reflected, double scale,
                    Tensor out) {
  STD_TORCH_CHECK(t_in.dim() == 3, "surm_kernels: t must have 3 dimensions, got ", t_in.dim());
  const int64_t rows = t_in.size(2) + 1 - columns;
  STD_TORCH_CHECK(columns > 0 && rows > 0, "surm_kernels: columns must be from 1 to ", t_in.size(2), ", got ", columns);
  const ToeplitzShape shape{1, 0, t_in.size(0), t_in.size(1), rows, columns, false, reflected};
  const Tensor weight = with_contiguous_rows(weight_in), t = torch::stable::contiguous(t_in);
  const auto merge = merge_of(weight, out, shape.out_blocks * rows, shape.in_blocks * columns);
  if (out.numel() > 0) {
    surm::cpu::instruction_set().toeplitz_dense->merge(storage_type(t), shape, t.const_data_ptr(), scale, merge,
                                                       parallel_for);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(surm_kernels, CPU, m) {
  m.impl("toeplitz_dense", TORCH_BOX(&toeplitz_dense));
  m.impl("toeplitz_dense_adjoint", TORCH_BOX(&toeplitz_dense_adjoint));
  m.impl("toeplitz_merge", TORCH_BOX(&toeplitz_merge));
}
