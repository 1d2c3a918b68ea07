// What the Kronecker kernels work on: the factors A and B made ready, and batches of tokens in cache.
//
// A token is a matrix. Tokens of a batch are interleaved: row 0 of every token, then row 1 of every token. So a batch
// of n tokens of q × s is one matrix of q × (n · s), which a factor from the left takes as it is, with full vectors
// however short a token's rows are, and also one of (q · n) × s, which a factor from the right takes as it is.
#pragma once

#include <numeric>

#include "kronecker_matrices.h"
#include "scratch.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

// ---- the factors ----

// The factors A of all problems, (groups, p, q).
template <class Storage>
class LeftFactors {
  using Scalar = ComputeType<Storage>;

 public:
  LeftFactors() = default;
  LeftFactors(const Storage* a, int64_t groups, int64_t p, int64_t q) : p_(p), q_(q), data_(groups * p * q) {
    convert(a, groups * p * q, data_.data());
  }

  Entries<Scalar> at(int64_t group) const { return {data_.data() + group * p_ * q_, q_, 1}; }
  Entries<Scalar> transposed_at(int64_t group) const { return {data_.data() + group * p_ * q_, 1, q_}; }

 private:
  int64_t p_ = 0, q_ = 0;
  Buffer<Scalar> data_;
};

// The factors B of all problems, (groups, r, s), or their transposes; each row is padded to full vectors.
template <class Storage>
class RightFactors {
  using Scalar = ComputeType<Storage>;

 public:
  RightFactors() = default;
  RightFactors(const Storage* b, int64_t groups, int64_t r, int64_t s, bool transposed)
      : stride_(odd_lines(transposed ? r : s)), size_((transposed ? s : r) * stride_), data_(groups * size_) {
    const int64_t upright_stride = odd_lines(s);
    const Buffer<Scalar> upright(transposed ? r * upright_stride : 0);
    for (int64_t group = 0; group < groups; ++group) {
      Scalar* to = data_.data() + group * size_;
      load(b + group * r * s, r, s, transposed ? upright.data() : to, upright_stride);
      if (transposed) transpose(r, s, upright.data(), upright_stride, to, stride_);
    }
  }

  VectorRows<Scalar> at(int64_t group) const { return {data_.data() + group * size_, stride_}; }

 private:
  // Rows an even number of lines apart would meet in few sets of L1.
  static int64_t odd_lines(int64_t columns) {
    constexpr int64_t kLine = 64 / sizeof(Scalar);
    return ((columns + kLine - 1) / kLine | 1) * kLine;
  }

  static void load(const Storage* from, int64_t rows, int64_t columns, Scalar* to, int64_t stride) {
    for (int64_t i = 0; i < rows; ++i, from += columns, to += stride) {
      for_vectors<Scalar>(columns, [&](int64_t j, int64_t n) { store_vector(to + j, load_first(from + j, n)); });
    }
  }

  int64_t stride_ = 0, size_ = 0;
  Buffer<Scalar> data_;
};

// ---- batches of tokens ----

// The size of a token's matrix.
struct Matrix {
  int64_t rows, columns;
  int64_t size() const { return rows * columns; }
};

struct Batch {
  int64_t group, first, count;
  int64_t end() const { return first + count; }
};

// The tokens of a problem cut into batches of the same size, the last one of what is left.
struct TokenBatches {
  int64_t tokens, size;

  int64_t count() const { return (tokens + size - 1) / size; }
  Batch at(int64_t group, int64_t index) const { return {group, index * size, std::min(size, tokens - index * size)}; }
};

// Work is counted in multiplications of one lane, idle lanes included.
inline int64_t items_worth_a_thread(int64_t work_of_an_item) {
  constexpr int64_t kWorkWorthAThread = 256 * 1024;
  return std::max<int64_t>(1, kWorkWorthAThread / std::max<int64_t>(work_of_an_item, 1));
}

// What a token costs: numbers in cache, beside `parameters` numbers of the factors, and work; and the columns of its
// matrix when a factor from the left meets it.
struct TokenCost {
  int64_t numbers, parameters, work, columns;
};

template <class Scalar>
TokenBatches batches_of(int64_t tokens, const TokenCost& cost) {
  constexpr int64_t kLeast = (32 << 10) / sizeof(Scalar), kMost = (1 << 20) / sizeof(Scalar);
  constexpr int64_t L = kLanes<Scalar>, kPage = 4096 / sizeof(Scalar);
  // Factors that leave L1 are read anew for every batch, so more tokens have to share them.
  int64_t size = std::clamp(cost.parameters, kLeast, kMost) / std::max<int64_t>(cost.numbers, 1);
  size = std::min(size, std::max((tokens + 7) / 8, items_worth_a_thread(cost.work)));
  // Rows of whole vectors, but not a multiple of a page apart, where they would meet in one set of L1.
  const int64_t full = L / std::gcd(L, cost.columns);
  if (size > full) size -= size % full;
  if (size > full && size * cost.columns % kPage == 0) size -= full;
  return {tokens, std::max<int64_t>(1, std::min(size, tokens))};
}

// Tokens of a tensor into a batch.
template <class Storage>
void gather(const ConstRows& from, const Batch& batch, const Matrix& matrix, ComputeType<Storage>* to) {
  using Scalar = ComputeType<Storage>;
  for (int64_t t = 0; t < batch.count; ++t) {
    const Storage* row =
        static_cast<const Storage*>(from.data) + batch.group * from.group_stride + (batch.first + t) * from.row_stride;
    for (int64_t i = 0; i < matrix.rows; ++i, row += matrix.columns) {
      Scalar* out = to + (i * batch.count + t) * matrix.columns;
      convert(row, matrix.columns, out);
    }
  }
}

// A contiguous tensor (groups, tokens, width) to be filled with base + scale · what the batches hold.
template <class Storage>
struct TokenSink {
  Storage* data;
  int64_t tokens;
  Matrix matrix;
  ConstRows base;  // data may be null
  ComputeType<Storage> scale;
};

template <bool kBase, class Storage>
void scatter_token(const ComputeType<Storage>* from, const Batch& batch, int64_t t, const TokenSink<Storage>& to) {
  using Scalar = ComputeType<Storage>;
  const int64_t token = batch.first + t;
  Storage* out = to.data + (batch.group * to.tokens + token) * to.matrix.size();
  const Storage* base = static_cast<const Storage*>(to.base.data);
  if (kBase) base += batch.group * to.base.group_stride + token * to.base.row_stride;
  for (int64_t i = 0; i < to.matrix.rows; ++i) {
    const Scalar* row = from + (i * batch.count + t) * to.matrix.columns;
    const int64_t offset = i * to.matrix.columns;
    for_vectors<Scalar>(to.matrix.columns, [&](int64_t j, int64_t n) {
      Vector<Scalar> value = load_first(row + j, n) * to.scale;
      if (kBase) value += load_first(base + offset + j, n);
      store_first(out + offset + j, value, n);
    });
  }
}

// A batch back into a tensor.
template <class Storage>
void scatter(const ComputeType<Storage>* from, const Batch& batch, const TokenSink<Storage>& to) {
  for (int64_t t = 0; t < batch.count; ++t) {
    to.base.data != nullptr ? scatter_token<true>(from, batch, t, to) : scatter_token<false>(from, batch, t, to);
  }
}

// Asks for the tokens after a batch, if they lie one behind the other.
template <class Storage>
void prefetch_next(Prefetch& prefetch, const ConstRows& rows, const Batch& batch, const TokenBatches& batches,
                   const Matrix& matrix) {
  const int64_t count = std::min(batches.size, batches.tokens - batch.end());
  if (rows.row_stride != matrix.size() || count <= 0) return;
  const Storage* from = static_cast<const Storage*>(rows.data) + batch.group * rows.group_stride;
  prefetch.add(from + batch.end() * matrix.size(), count * matrix.size() * static_cast<int64_t>(sizeof(Storage)));
}

// Asks for the lines that a batch will overwrite.
template <class Storage>
void prefetch_destination(Prefetch& prefetch, const Batch& batch, const TokenSink<Storage>& to) {
  const int64_t size = to.matrix.size();
  prefetch.add(to.data + (batch.group * to.tokens + batch.first) * size,
               batch.count * size * static_cast<int64_t>(sizeof(Storage)));
}

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
