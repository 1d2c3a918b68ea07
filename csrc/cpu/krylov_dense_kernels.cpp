// The dense matrix of a block f-circulant and the sums along its diagonals, compiled once per instruction set.
//
// The 2b - 1 diagonals of a block are d[b-1-i+j] = W[i, j], so that row i is a window of b consecutive values of d.
#include "krylov.h"
#include "windows.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

template <class Storage>
Storage times_sign(Storage value, int sign) {
  using Bits = typename StorageTraits<Storage>::Bits;
  if (sign > 0) return value;
  return bit_cast<Storage>(static_cast<Bits>(bit_cast<Bits>(value) ^ (Bits{1} << (8 * sizeof(Bits) - 1))));
}

Windows windows_of(const KrylovShape& shape) {
  return {shape.groups * shape.out_blocks, shape.in_blocks, shape.block, shape.block, false};
}

template <class Value>
std::vector<Value> diagonals_of(const KrylovShape& shape, const Value* v, const ParallelFor& parallel) {
  const Windows windows = windows_of(shape);
  const int64_t b = shape.block;
  std::vector<Value> diagonals(windows.blocks() * windows.diagonals());
  parallel(windows.blocks(), windows_grain(b), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const Value* column = v + block * b;
      Value* d = diagonals.data() + block * windows.diagonals();
      for (int64_t k = 0; k < b; ++k) d[b - 1 - k] = column[k];
      for (int64_t k = 1; k < b; ++k) d[2 * b - 1 - k] = times_sign(column[k], shape.sign);
    }
  });
  return diagonals;
}

template <class Storage>
void dense(const KrylovShape& shape, const Storage* v, Storage* w, const ParallelFor& parallel) {
  lay_out(windows_of(shape), diagonals_of(shape, v, parallel).data(), w, parallel);
}

template <class Scalar, class Storage>
void merge_in(const KrylovShape& shape, const Storage* v, double scale, const Merge& merge,
              const ParallelFor& parallel) {
  const Windows windows = windows_of(shape);
  const auto scaled = scaled_values<Scalar>(v, windows.blocks() * shape.block, scale, parallel);
  add_windows(windows, diagonals_of(shape, scaled.data(), parallel).data(), merge, parallel);
}

template <class Storage>
void adjoint(const KrylovShape& shape, const Storage* w, Storage* v, const ParallelFor& parallel) {
  using Scalar = ComputeType<Storage>;
  const int64_t b = shape.block;
  sum_windows(windows_of(shape), w, parallel, [&](int64_t block, const Scalar* sums) {
    for (int64_t k = 0; k < b; ++k) {
      const Scalar wrapped = k == 0 ? Scalar{0} : shape.sign * sums[2 * b - 1 - k];
      store_partial(v + block * b + k, Vector<Scalar>{} + (sums[b - 1 - k] + wrapped), 1);
    }
  });
}

void dense_of_type(StorageType type, const KrylovShape& shape, const void* v, void* w, const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    dense(shape, static_cast<const Storage*>(v), static_cast<Storage*>(w), parallel);
  });
}

void adjoint_of_type(StorageType type, const KrylovShape& shape, const void* w, void* v, const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    adjoint(shape, static_cast<const Storage*>(w), static_cast<Storage*>(v), parallel);
  });
}

void merge_of_type(StorageType type, const KrylovShape& shape, const void* v, double scale, const Merge& merge,
                   const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    const auto* values = static_cast<const decltype(tag)*>(v);
    merge.in_float64() ? merge_in<double>(shape, values, scale, merge, parallel)
                       : merge_in<float>(shape, values, scale, merge, parallel);
  });
}

}  // namespace

extern const KrylovDenseKernels krylov_dense_kernels;
const KrylovDenseKernels krylov_dense_kernels{dense_of_type, adjoint_of_type, merge_of_type};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
