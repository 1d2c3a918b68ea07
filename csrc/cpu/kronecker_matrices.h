// Small dense matrices in cache: products with the vector lanes along the rows of the result, and transposition.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "masks.h"
#include "prefetch.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

// ---- products ----

// The left factor of a product: read one entry at a time, so its strides are free and a transpose costs nothing.
template <class Scalar>
struct Entries {
  const Scalar* data;
  int64_t row_stride, column_stride;

  Entries at(int64_t row, int64_t column) const {
    return {data + row * row_stride + column * column_stride, row_stride, column_stride};
  }
};

// The right factor: read whole vectors along its rows, and past the end of a row up to the next full vector.
template <class Scalar>
struct VectorRows {
  const Scalar* data;
  int64_t stride;
};

// Terms that are summed at once: what a block reads of its factors stays in L1, and sums round little.
constexpr int64_t kMostTerms = 192;

namespace detail {

// A block of the result in registers: of the 32 of AVX-512 or the 16 of the others, most are sums, kMostVectors hold a
// row of the right factor.
constexpr int kMostRows = kVectorBytes == 64 ? 8 : 6;
constexpr int kMostVectors = kVectorBytes == 64 ? 3 : 2;

template <class Scalar>
struct Block {
  int64_t terms;
  Entries<Scalar> left;
  VectorRows<Scalar> right;
  Scalar* out;
  int64_t out_stride;
  int64_t last_lanes;  // values of the result in its last vector
  bool add;
};

template <class Scalar, int kRows, int kVectors>
void multiply_block(const Block<Scalar>& block) {
  using V = Vector<Scalar>;
  constexpr int64_t L = kLanes<Scalar>;
  V sum[kRows][kVectors] = {};
  const Scalar *left = block.left.data, *right = block.right.data;
  const int64_t row_stride = block.left.row_stride, column_stride = block.left.column_stride;
  for (int64_t k = 0; k < block.terms; ++k, left += column_stride, right += block.right.stride) {
    V row[kVectors];
    SURM_UNROLL
    for (int v = 0; v < kVectors; ++v) row[v] = load_as<V>(right + v * L);
    SURM_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const Scalar entry = left[i * row_stride];
      SURM_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[i][v] += entry * row[v];
    }
  }
  SURM_UNROLL
  for (int i = 0; i < kRows; ++i) {
    Scalar* out = block.out + i * block.out_stride;
    SURM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int64_t count = v + 1 < kVectors ? L : block.last_lanes;
      store_first(out + v * L, block.add ? sum[i][v] + load_first(out + v * L, count) : sum[i][v], count);
    }
  }
}

template <class Scalar, int... kShape>
constexpr auto block_functions(std::integer_sequence<int, kShape...>) {
  return std::array<void (*)(const Block<Scalar>&), sizeof...(kShape)>{
      multiply_block<Scalar, kShape / kMostVectors + 1, kShape % kMostVectors + 1>...};
}

// Cuts 0 … count-1 into as few parts of at most `most` as there can be, of nearly the same size.
template <class Body>
SURM_INLINE void for_parts(int64_t count, int64_t most, const Body& body) {
  const int64_t parts = (count + most - 1) / most;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = count * part / parts;
    body(begin, count * (part + 1) / parts - begin);
  }
}

// A panel of the right factor side by side: many rows use it, and strides of a power of two would meet in few sets of
// L1.
template <class Scalar>
VectorRows<Scalar> pack(const VectorRows<Scalar>& panel, int64_t terms, int64_t vectors, Scalar* packed) {
  using V = Vector<Scalar>;
  const int64_t stride = vectors * kLanes<Scalar>;
  for (int64_t k = 0; k < terms; ++k) {
    for (int64_t j = 0; j < stride; j += kLanes<Scalar>) {
      const V value = load_as<V>(panel.data + k * panel.stride + j);
      std::memcpy(packed + k * stride + j, &value, sizeof(V));
    }
  }
  return {packed, stride};
}

}  // namespace detail

// out = left · right, or out += left · right, with `terms` columns of left and rows of right. The sum for an entry runs
// in the same order wherever the entry lies in the result.
template <class Scalar>
void multiply(int64_t rows, int64_t columns, int64_t terms, const Entries<Scalar>& left,
              const VectorRows<Scalar>& right, Scalar* out, int64_t out_stride, bool add, Prefetch& prefetch) {
  constexpr auto kFunctions =
      detail::block_functions<Scalar>(std::make_integer_sequence<int, detail::kMostRows * detail::kMostVectors>{});
  constexpr int64_t L = kLanes<Scalar>;
  constexpr int64_t kRowsWorthPacking = 64;
  constexpr int kStepsInBlock = 2;  // as many lines as memory brings meanwhile
  alignas(64) Scalar packed[kMostTerms * detail::kMostVectors * L];
  const int64_t vectors = (columns + L - 1) / L;
  int64_t first = 0;
  do {
    const int64_t part = std::min(kMostTerms, terms - first);
    detail::for_parts(vectors, detail::kMostVectors, [&](int64_t vector, int64_t width) {
      const int64_t column = vector * L;
      VectorRows<Scalar> panel{right.data + first * right.stride + column, right.stride};
      if (rows >= kRowsWorthPacking) panel = detail::pack(panel, part, width, packed);
      detail::for_parts(rows, detail::kMostRows, [&](int64_t row, int64_t height) {
        for (int i = 0; i < kStepsInBlock; ++i) prefetch.step();
        kFunctions[(height - 1) * detail::kMostVectors + width - 1](
            {part, left.at(row, first), panel, out + row * out_stride + column, out_stride,
             std::min(L, columns - (vector + width - 1) * L), add || first > 0});
      });
    });
    first += part;
  } while (first < terms);
}

// ---- transposition ----

namespace detail {

// A square of kLanes vectors in registers.
template <class Scalar>
SURM_INLINE void transpose_square(Vector<Scalar>* v) {
  constexpr int E = kBlockLanes<Scalar>, B = kBlocks<Scalar>;
  SURM_UNROLL
  for (int group = 0; group < B; ++group) transpose_in_blocks<Scalar>(v + group * E);
  SURM_UNROLL
  for (int j = 0; j < E; ++j) {
    Vector<Scalar> column[B];
    SURM_UNROLL
    for (int group = 0; group < B; ++group) column[group] = v[group * E + j];
    transpose_blocks<Scalar>(column);
    SURM_UNROLL
    for (int group = 0; group < B; ++group) v[group * E + j] = column[group];
  }
}

}  // namespace detail

// to (columns × rows) = fromᵀ. Rows of `from` may be read up to the next full vector; rows of `to` are written so, and
// what lies past `rows` says nothing.
template <class Scalar>
void transpose(int64_t rows, int64_t columns, const Scalar* from, int64_t from_stride, Scalar* to, int64_t to_stride) {
  using V = Vector<Scalar>;
  constexpr int64_t L = kLanes<Scalar>;
  for (int64_t j = 0; j < columns; j += L) {
    for (int64_t i = 0; i < rows; i += L) {
      V v[L];
      SURM_UNROLL
      for (int64_t k = 0; k < L; ++k) v[k] = load_as<V>(from + std::min(i + k, rows - 1) * from_stride + j);
      detail::transpose_square<Scalar>(v);
      const int64_t count = std::min(L, columns - j);
      SURM_UNROLL
      for (int64_t k = 0; k < L; ++k) {
        if (k < count) std::memcpy(to + (j + k) * to_stride + i, &v[k], sizeof(V));
      }
    }
  }
}

// out (rows × columns) += left (rows × terms) · rightᵀ for right of columns × terms, all side by side. `turned` has
// room for kMostTerms rows of whole vectors.
template <class Scalar>
void add_product_with_transpose(int64_t rows, int64_t columns, int64_t terms, const Scalar* left, const Scalar* right,
                                Scalar* turned, Scalar* out, Prefetch& prefetch) {
  const int64_t stride = (columns + kLanes<Scalar> - 1) / kLanes<Scalar> * kLanes<Scalar>;
  for (int64_t first = 0; first < terms; first += kMostTerms) {
    const int64_t part = std::min(kMostTerms, terms - first);
    transpose(columns, part, right + first, terms, turned, stride);
    multiply(rows, columns, part, {left + first, terms, 1}, {turned, stride}, out, columns, true, prefetch);
  }
}

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
