// The first column of the circulant that acts as an f-circulant matrix, f = 1 or -1, and the adjoint of that layout.
#pragma once

#include <algorithm>
#include <limits>

#include "vector.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

// The first column of the N × N circulant that acts as Z_f(v) on the first n values. If N > n, what wraps around comes
// from the end: values[N-n+j] = f v_j. If N = n it is v: for f = -1 the transform is twisted.
template <class Storage>
void embed_f_circulant(const Storage* v, int64_t n, int64_t length, int f, ComputeType<Storage>* values) {
  using Scalar = ComputeType<Storage>;
  constexpr int L = kLanes<Scalar>;
  for (int64_t j = 0; j < n; j += L) {
    const int count = static_cast<int>(std::min<int64_t>(L, n - j));
    store_partial<Scalar>(values + j, load_partial(v + j, count), count);
  }
  if (length == n) return;
  std::fill(values + n, values + length, Scalar{0});
  for (int64_t j = 1; j < n; ++j) values[length - n + j] = static_cast<Scalar>(f) * values[j];
}

// The adjoint: the gradient of v from that of the circulant's first column, which is used up; NaN if not `finite`.
template <class Storage>
void unembed_f_circulant(ComputeType<Storage>* values, int64_t n, int64_t length, int f, bool finite, Storage* v) {
  using Scalar = ComputeType<Storage>;
  constexpr int L = kLanes<Scalar>;
  if (length != n) {
    for (int64_t j = 1; j < n; ++j) values[j] += static_cast<Scalar>(f) * values[length - n + j];
  }
  if (!finite) std::fill(values, values + n, std::numeric_limits<Scalar>::quiet_NaN());
  for (int64_t j = 0; j < n; j += L) {
    const int count = static_cast<int>(std::min<int64_t>(L, n - j));
    store_partial(v + j, load_partial<Scalar>(values + j, count), count);
  }
}

// The transpose of Z_f(v) is Z_f(v'), v' = [v_0, f v_{n-1}, …, f v_1]; its own inverse.
template <class Scalar>
void transpose_f_circulant(int64_t n, int f, Scalar* v) {
  if (n < 2) return;
  std::reverse(v + 1, v + n);
  for (int64_t j = 1; j < n; ++j) v[j] *= static_cast<Scalar>(f);
}

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
