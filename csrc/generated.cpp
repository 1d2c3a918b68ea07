// What generated matrices need of the library: powers of nodes, and memory for rows.
#include <torch/csrc/stable/library.h>

#include "cpu/instruction_set.h"
#include "glue.h"

using namespace surm::glue;

namespace {

Tensor powers(const Tensor& v_in, int64_t columns) {
  check_tensor(v_in, "v", 1, v_in);
  STD_TORCH_CHECK(v_in.scalar_type() == ScalarType::Float || v_in.scalar_type() == ScalarType::Double,
                  "surm_kernels: v must be float32 or float64");
  STD_TORCH_CHECK(columns >= 0, "surm_kernels: columns must be at least 0, got ", columns);
  const Tensor v = made_contiguous(v_in);
  Tensor w = empty(v, {v.size(0), columns});
  if (w.numel() > 0) {
    surm::cpu::instruction_set().powers->powers(storage_type(v), v.const_data_ptr(), v.size(0), columns,
                                                w.mutable_data_ptr(), parallel_for);
  }
  return w;
}

Tensor empty_like_rows(const Tensor& x, int64_t columns) {
  check_tensor(x, "x", 2, x);
  return empty_rows(x, {x.size(0), columns});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SURM_NAMESPACE, CPU, m) {
  m.impl("powers", SURM_BOX(powers));
  m.impl("empty_rows", SURM_BOX(empty_like_rows));
}
