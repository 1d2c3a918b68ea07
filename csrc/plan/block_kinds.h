// The kinds of blocks of a grid: which values of its parameter a block repeats where, and the circulant that acts as it
// does. Shared by the CPU and CUDA kernels, which do not ask for a kind themselves; no torch inside.
//
// A grid of m × n blocks is a part of a grid of N × N circulants for any N >= m + n - 1, whose first columns the values
// are laid out along. A circulant block may also be its own, N = n, and a skew-circulant one by the twist exp(iπ j/n).
// A Hankel block is a Toeplitz one with the rows of x in reversed order, which costs nothing (spectral_shape.h).
#pragma once

#include <cstdint>

#include "shapes.h"
#include "spectral_shape.h"

namespace surm {

// Values start, start ± 1, … of a parameter, times a sign, lie at begin … end-1 of a vector.
struct Segment {
  int64_t begin = 0, end = 0;
  int64_t start = 0;
  int step = 1;
  int sign = 1;

  int64_t length() const { return end - begin; }
  int64_t lowest() const { return step > 0 ? start : start - (length() - 1); }  // of the values
};

// How the `count` values of a parameter lie in a vector, segment by segment; what no segment covers is zero.
struct Layout {
  static constexpr int kSegments = 3;
  int64_t count = 0;
  Segment segments[kSegments];
};

// A block of m × n; where what leaves it wraps around to the other side it is square.
class Block {
 public:
  Block(BlockKind kind, int64_t rows, int64_t columns);
  explicit Block(const GridShape& shape) : Block(shape.kind, shape.rows, shape.columns) {}

  bool exists() const;    // such blocks have at least one row and one column, and are square if they wrap
  int64_t count() const;  // of the values that it repeats
  bool rising() const { return rising_; }  // equal entries lie along antidiagonals, else along diagonals

  // The plan of its products (plan.h): one for rows of count() values, padded or of just that length if possible.
  bool padded() const { return wrap_ == 0; }
  bool twisted(int64_t length) const { return wrap_ < 0 && length == columns_; }

  // The first column of the N × N circulant that acts as the block, or as its transpose.
  Layout column(int64_t length, bool transposed) const;

  // The m + n - 1 diagonals, or antidiagonals if they rise, so that each row is a window of n of them.
  Layout diagonals() const;

  // Entry (i, j) is value i - j + offset(), i + j if they rise; plus n, and times wrap(), where that is negative.
  int64_t offset() const { return wrap_ == 0 && !rising_ ? columns_ - 1 : 0; }
  int wrap() const { return wrap_; }  // 0: nothing wraps

 private:
  int64_t rows_, columns_;
  int wrap_;
  bool rising_;
};

// Rows of a block with so many values and columns, 0 where there is none.
int64_t rows_of_block(BlockKind kind, int64_t count, int64_t columns);

// The first column of the circulant of a generator of low displacement rank, Z_1(left_l) or Z_-1(right_l). If
// reflected, the latter is times the reversal J = S^(n-1) R: the shift S is in here, for R rows come in reversed order.
Layout generator_column(const LdrShape& shape, int64_t length, bool is_right);

// A product with the grid as one with circulants of this length.
SpectralShape spectral_shape(const GridShape& shape, int64_t length);

}  // namespace surm
