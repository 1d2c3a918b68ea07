// The dense matrix of a block f-circulant and the sums along its diagonals, compiled once per instruction set.
//
// Both walk the 2b - 1 diagonals of a block laid out as d[b-1-i+j] = W[i, j], so that row i is b consecutive values of
// d.
#include <algorithm>
#include <vector>

#include "krylov.h"
#include "vector.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

constexpr int64_t kValuesWorthAThread = 32 * 1024;

template <class Storage>
Storage times_sign(Storage value, int sign) {
  using Bits = typename StorageTraits<Storage>::Bits;
  if (sign > 0) return value;
  return bit_cast<Storage>(static_cast<Bits>(bit_cast<Bits>(value) ^ (Bits{1} << (8 * sizeof(Bits) - 1))));
}

template <class Storage>
void dense(const KrylovShape& shape, const Storage* v, Storage* w, const ParallelFor& parallel) {
  const int64_t b = shape.block, row_blocks = shape.groups * shape.out_blocks, width = shape.in_blocks * b;
  const int64_t length = 2 * b - 1;
  std::vector<Storage> diagonals(row_blocks * shape.in_blocks * length);
  for (int64_t block = 0; block < row_blocks * shape.in_blocks; ++block) {
    const Storage* column = v + block * b;
    Storage* d = diagonals.data() + block * length;
    for (int64_t k = 0; k < b; ++k) d[b - 1 - k] = column[k];
    for (int64_t k = 1; k < b; ++k) d[2 * b - 1 - k] = times_sign(column[k], shape.sign);
  }
  parallel(row_blocks * b, std::max<int64_t>(1, kValuesWorthAThread / width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Storage* d = diagonals.data() + row / b * shape.in_blocks * length + (b - 1 - row % b);
      for (int64_t q = 0; q < shape.in_blocks; ++q) {
        std::memcpy(w + row * width + q * b, d + q * length, b * sizeof(Storage));
      }
    }
  });
}

// sums[0 … count) += from[0 … count)
template <class Storage>
void add_row(const Storage* from, int64_t count, ComputeType<Storage>* sums) {
  using Scalar = ComputeType<Storage>;
  constexpr int L = kLanes<Scalar>;
  int64_t j = 0;
  for (; j + L <= count; j += L) {
    store_vector<Scalar>(sums + j, load_vector<Scalar>(sums + j) + load_vector(from + j));
  }
  for (; j < count; ++j) sums[j] += load_partial(from + j, 1)[0];
}

// The rows of a block are summed in a fixed number of chunks, then chunk by chunk: the same for any thread count.
template <class Storage>
void adjoint(const KrylovShape& shape, const Storage* w, Storage* v, const ParallelFor& parallel) {
  using Scalar = ComputeType<Storage>;
  const int64_t b = shape.block, K = shape.in_blocks, length = 2 * b - 1;
  const int64_t blocks = shape.groups * shape.out_blocks * K;
  const int64_t chunks = std::min<int64_t>(b, 16);
  std::vector<Scalar> sums(blocks * chunks * length, Scalar{0});
  parallel(blocks * chunks, std::max<int64_t>(1, kValuesWorthAThread * chunks / (b * b)),
           [&](int64_t begin, int64_t end) {
             for (int64_t item = begin; item < end; ++item) {
               const int64_t block = item / chunks, chunk = item % chunks, row_block = block / K, q = block % K;
               for (int64_t i = b * chunk / chunks; i < b * (chunk + 1) / chunks; ++i) {
                 add_row(w + (row_block * b + i) * K * b + q * b, b, sums.data() + item * length + (b - 1 - i));
               }
             }
           });
  parallel(blocks, std::max<int64_t>(1, kValuesWorthAThread / (chunks * length)), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      Scalar* total = sums.data() + block * chunks * length;
      for (int64_t chunk = 1; chunk < chunks; ++chunk) add_row(total + chunk * length, length, total);
      for (int64_t k = 0; k < b; ++k) {
        const Scalar wrapped = k == 0 ? Scalar{0} : shape.sign * total[2 * b - 1 - k];
        store_partial(v + block * b + k, Vector<Scalar>{} + (total[b - 1 - k] + wrapped), 1);
      }
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

}  // namespace

extern const KrylovDenseKernels krylov_dense_kernels;
const KrylovDenseKernels krylov_dense_kernels{dense_of_type, adjoint_of_type};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
