// The table of block kinds and what follows from it, see block_kinds.h.
#include "block_kinds.h"

#include <utility>

namespace surm {
namespace {

struct KindOfBlock {
  int wrap;     // the sign with which values that leave a block come back on the other side; 0: they do not
  bool rising;  // equal entries lie along antidiagonals
};

// In the order of BlockKind.
constexpr KindOfBlock kKinds[] = {{1, false}, {-1, false}, {0, false}, {0, true}};

KindOfBlock facts_of(BlockKind kind) { return kKinds[static_cast<int>(kind)]; }

}  // namespace

Block::Block(BlockKind kind, int64_t rows, int64_t columns)
    : rows_(rows), columns_(columns), wrap_(facts_of(kind).wrap), rising_(facts_of(kind).rising) {}

bool Block::exists() const { return rows_ > 0 && columns_ > 0 && (wrap_ == 0 || rows_ == columns_); }

int64_t Block::count() const { return wrap_ != 0 ? columns_ : rows_ + columns_ - 1; }

Layout Block::column(int64_t length, bool transposed) const {
  const int64_t m = rows_, n = columns_, count = this->count();
  if (rising_) return {count, {{0, count, 0, 1, 1}}};
  if (wrap_ != 0) {
    Layout layout{n, {{0, n, 0, 1, 1}}};
    if (transposed) layout = {n, {{0, 1, 0, 1, 1}, {1, n, n - 1, -1, wrap_}}};
    if (length == n) return layout;
    // In a longer circulant what wraps around comes from the end.
    layout.segments[2] = {length - n + 1, length, 1, 1, wrap_};
    if (transposed) layout.segments[2] = {length - n + 1, length, n - 1, -1, 1};
    return layout;
  }
  // Value k is diagonal i - j = k - (n - 1), which the transpose turns into its negative: those come from the end.
  if (transposed) return {count, {{0, n, n - 1, -1, 1}, {length - m + 1, length, count - 1, -1, 1}}};
  return {count, {{0, m, n - 1, 1, 1}, {length - n + 1, length, 0, 1, 1}}};
}

Layout Block::diagonals() const {
  const int64_t n = columns_, count = this->count();
  if (rising_) return {count, {{0, count, 0, 1, 1}}};
  if (wrap_ == 0) return {count, {{0, count, count - 1, -1, 1}}};
  return {n, {{0, n, n - 1, -1, 1}, {n, 2 * n - 1, n - 1, -1, wrap_}}};
}

int64_t rows_of_block(BlockKind kind, int64_t count, int64_t columns) {
  if (columns < 1 || columns > count) return 0;
  if (facts_of(kind).wrap != 0) return columns == count ? count : 0;
  return count - columns + 1;
}

Layout generator_column(const LdrShape& shape, int64_t length, bool is_right) {
  const int64_t n = shape.size;
  if (!is_right) return Block(BlockKind::kCirculant, n, n).column(length, false);
  if (!shape.reflected) return Block(BlockKind::kSkewCirculant, n, n).column(length, false);
  // Shifted by n - 1, what passes the end of Z_-1 changes its sign.
  return {n, {{n - 1, length == n ? n : 2 * n - 1, 0, 1, 1}, {0, n - 1, 1, 1, -1}}};
}

SpectralShape spectral_shape(const GridShape& shape, int64_t length) {
  const Block block(shape);
  SpectralShape product{shape.groups, shape.tokens,  shape.out_blocks,      shape.in_blocks,
                        shape.rows,   shape.columns, block.twisted(length), block.rising()};
  if (shape.transposed) {
    std::swap(product.rows, product.columns);
    std::swap(product.out_size, product.in_size);
  }
  return product;
}

}  // namespace surm
