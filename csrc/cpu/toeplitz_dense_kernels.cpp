// The dense matrix of a block Toeplitz or Hankel matrix and the sums along its diagonals, compiled once per instruction
// set.
//
// Row i of a Hankel block is a window of t that begins at t[i]. Of a Toeplitz block it is a window of t reversed,
// d[k] = t[m + n - 2 - k], that begins at d[m-1-i].
#include "toeplitz.h"
#include "windows.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

Windows windows_of(const ToeplitzShape& shape) {
  return {shape.groups * shape.out_blocks, shape.in_blocks, shape.rows, shape.columns, shape.reflected};
}

template <class Value>
std::vector<Value> reversed_blocks(const Windows& windows, const Value* t, const ParallelFor& parallel) {
  const int64_t length = windows.diagonals();
  std::vector<Value> reversed(windows.blocks() * length);
  parallel(windows.blocks(), windows_grain(length), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      std::reverse_copy(t + block * length, t + (block + 1) * length, reversed.begin() + block * length);
    }
  });
  return reversed;
}

template <class Storage>
void dense(const ToeplitzShape& shape, const Storage* t, Storage* w, const ParallelFor& parallel) {
  const Windows windows = windows_of(shape);
  if (shape.reflected) return lay_out(windows, t, w, parallel);
  lay_out(windows, reversed_blocks(windows, t, parallel).data(), w, parallel);
}

template <class Scalar, class Storage>
void merge_in(const ToeplitzShape& shape, const Storage* t, double scale, const Merge& merge,
              const ParallelFor& parallel) {
  const Windows windows = windows_of(shape);
  auto diagonals = scaled_values<Scalar>(t, windows.blocks() * windows.diagonals(), scale, parallel);
  if (!shape.reflected) diagonals = reversed_blocks(windows, diagonals.data(), parallel);
  add_windows(windows, diagonals.data(), merge, parallel);
}

template <class Storage>
void adjoint(const ToeplitzShape& shape, const Storage* w, Storage* t, const ParallelFor& parallel) {
  using Scalar = ComputeType<Storage>;
  const Windows windows = windows_of(shape);
  const int64_t length = windows.diagonals();
  sum_windows(windows, w, parallel, [&](int64_t block, const Scalar* sums) {
    for (int64_t k = 0; k < length; ++k) {
      const Scalar sum = sums[shape.reflected ? k : length - 1 - k];
      store_partial(t + block * length + k, Vector<Scalar>{} + sum, 1);
    }
  });
}

void dense_of_type(StorageType type, const ToeplitzShape& shape, const void* t, void* w, const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    dense(shape, static_cast<const Storage*>(t), static_cast<Storage*>(w), parallel);
  });
}

void adjoint_of_type(StorageType type, const ToeplitzShape& shape, const void* w, void* t,
                     const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    adjoint(shape, static_cast<const Storage*>(w), static_cast<Storage*>(t), parallel);
  });
}

void merge_of_type(StorageType type, const ToeplitzShape& shape, const void* t, double scale, const Merge& merge,
                   const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    const auto* values = static_cast<const decltype(tag)*>(t);
    merge.in_float64() ? merge_in<double>(shape, values, scale, merge, parallel)
                       : merge_in<float>(shape, values, scale, merge, parallel);
  });
}

}  // namespace

extern const ToeplitzDenseKernels toeplitz_dense_kernels;
const ToeplitzDenseKernels toeplitz_dense_kernels{dense_of_type, adjoint_of_type, merge_of_type};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
