// What every kernel is told of its tensors, on the CPU and on CUDA: types, rows, and the sizes of each primitive.
#pragma once

#include <cstdint>

namespace surm {

enum class StorageType { kFloat64, kFloat32, kBFloat16, kFloat16 };

// Rows of a tensor (groups, tokens, width); the last dimension is contiguous, strides count elements.
struct ConstRows {
  const void* data = nullptr;
  int64_t group_stride = 0;
  int64_t row_stride = 0;
};

// A matrix and where its sum with another goes, which may be itself; the values of a row are contiguous, strides count
// elements. Both have one type, or one of them is float32.
struct Merge {
  StorageType weight_type, out_type;
  const void* weight;
  int64_t weight_stride;
  void* out;
  int64_t out_stride;
  const uint64_t* key;  // where the matrices are; the sum is rounded by it (stochastic_rounding.h). Null: to nearest

  // The type of the sum, which is rounded once; else it is float32.
  bool in_float64() const { return weight_type == StorageType::kFloat64 || out_type == StorageType::kFloat64; }
};

// Numbers of which the bits alone matter, as integers with a sign.
struct Numbers {
  const void* data;
  int64_t count;
  int bytes;  // of each: 2, 4 or 8
};

// How a block of m × n repeats the values of its parameter; numbered as the operators' `kind` is.
enum class BlockKind {
  kCirculant,      // W[i, j] = v[(i - j) mod n], m = n
  kSkewCirculant,  // the same, with the other sign where i < j
  kToeplitz,       // W[i, j] = v[i - j + n - 1]
  kHankel,         // W[i, j] = v[i + j]
};
constexpr int kBlockKinds = 4;

// W(v) of M·m × K·n: block (p, q) repeats the values v[p, q].
struct GridShape {
  int64_t groups;      // independent problems
  int64_t tokens;      // rows of x in each
  int64_t out_blocks;  // M
  int64_t in_blocks;   // K
  int64_t rows;        // m
  int64_t columns;     // n
  BlockKind kind;
  bool transposed;    // the product is with Wᵀ: rows of M·m go in, rows of K·n come out
  bool wide = false;  // v and its gradient are in the type of the arithmetic, not in that of the rows

  int64_t height() const { return out_blocks * rows; }
  int64_t width() const { return in_blocks * columns; }
};

// The top left out_size × in_size part of the n × n matrix W = Σ_l Z_1(left_l) Z_-1(right_l), times J if reflected.
struct LdrShape {
  int64_t groups;    // independent problems
  int64_t tokens;    // rows of x in each
  int64_t rank;      // r
  int64_t size;      // n
  int64_t out_size;  // values of y in W x, of g
  int64_t in_size;   // values of x
  bool transposed;   // the product is with Wᵀ: rows of out_size go in, rows of in_size come out
  bool reflected;
};

}  // namespace surm
