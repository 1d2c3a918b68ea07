// Stochastic rounding of a sum of two matrices.
#include <torch/csrc/stable/library.h>

#include "cpu/instruction_set.h"
#include "glue.h"
#include "merge.h"

using namespace surm::glue;

namespace {

void stochastic_sum(const Tensor& weight_in, const Tensor& addend_in, int64_t key, Tensor out) {
  STD_TORCH_CHECK(out.dim() == 2, "surm_kernels: out must be a matrix");
  const bool wide = addend_in.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(wide || addend_in.scalar_type() == out.scalar_type(),
                  "surm_kernels: addend must be float32 or have the dtype of out");
  const int64_t rows = out.size(0), columns = out.size(1);
  const Tensor weight = with_contiguous_rows(weight_in), addend = with_contiguous_rows(addend_in);
  STD_TORCH_CHECK(addend.dim() == 2 && addend.size(0) == rows && addend.size(1) == columns,
                  "surm_kernels: addend must be a matrix of ", rows, " x ", columns);
  check_device(addend, "addend", out);
  const surm::Merge merge = merge_of(weight, out, rows, columns, key);
  if (out.numel() == 0) return;
  surm::cpu::instruction_set().stochastic->sum(rows, columns, merge, addend.const_data_ptr(), addend.stride(0), wide,
                                               parallel_for);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SURM_NAMESPACE, CPU, m) { m.impl("stochastic_sum", SURM_BOX(stochastic_sum)); }
