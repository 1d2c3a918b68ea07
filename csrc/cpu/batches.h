// Tokens in and out of walks: pairs of rows with their scales, the rows a walk reads, and where its results go.
#pragma once

#include "rows.h"
#include "stages.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

// Rows of one problem: token t begins at data + t · stride.
template <class Storage>
struct Rows {
  const Storage* data = nullptr;
  int64_t stride = 0;

  const Storage* at(int64_t token) const { return data + token * stride; }
  explicit operator bool() const { return data != nullptr; }
};

template <class Storage>
Rows<Storage> rows_of(const ConstRows& rows, int64_t group) {
  if (rows.data == nullptr) return {};
  return {static_cast<const Storage*>(rows.data) + group * rows.group_stride, rows.row_stride};
}

// Two neighbouring tokens; a row past the last token is null, reads as zeros and is not written.
template <class Storage>
struct Pair {
  int64_t token;
  const Storage* row[2];
  RowScale<ComputeType<Storage>> scale[2];
};

// Where block `block` of results goes: row t of `out` (of `width` values) = base + scale · result. `conjugate`: pairs
// of results are packed as y1 - i·y2.
template <class Storage>
struct Destination {
  int64_t block, size, width;
  ComputeType<Storage> scale;
  Rows<Storage> base;
  Storage* out;
  bool conjugate = false;

  ComputeType<Storage> factor(int part) const { return conjugate && part == 1 ? -scale : scale; }
};

// The pairs of tokens from `first` on, `count` of them, with the scales of their rows of `width` values.
template <class Storage>
void find_pairs(const Rows<Storage>& rows, int64_t first, int count, int64_t tokens, int64_t width,
                Pair<Storage>* pairs) {
  for (int64_t k = 0; k < 2 * count; ++k) {
    const int64_t token = first + k;
    Pair<Storage>& pair = pairs[k / 2];
    if (k % 2 == 0) pair.token = token;
    const bool there = token < tokens;
    pair.row[k % 2] = there ? rows.at(token) : nullptr;
    pair.scale[k % 2] = there ? scale_of_row(rows.at(token), width) : RowScale<ComputeType<Storage>>{};
  }
}

// The tokens of x that belong to the pairs of g: x takes what g lost when it was brought to one, so that the product of
// the two keeps its size. A row of x that is not finite makes the sum over tokens not finite, as it should, and needs
// no search; false if a row of g is not, which was kept out.
template <class Storage>
bool find_partners(const Rows<Storage>& rows, const Pair<Storage>* g, int count, int64_t tokens, Pair<Storage>* x) {
  bool finite = true;
  for (int p = 0; p < count; ++p) {
    x[p].token = g[p].token;
    for (int i = 0; i < 2; ++i) {
      x[p].row[i] = g[p].token + i < tokens ? rows.at(g[p].token + i) : nullptr;
      x[p].scale[i] = {g[p].scale[i].out, g[p].scale[i].in, true};
      finite = finite && g[p].scale[i].finite;
    }
  }
  return finite;
}

// Moves batches of pairs between tensors and packed rows of a transform.
template <class Storage>
class Batches {
  using Scalar = ComputeType<Storage>;
  using C = Complex<Vector<Scalar>>;

 public:
  // `size`: the longest row that is ever loaded.
  Batches(const Transform<Scalar>& transform, int64_t size, bool twisted)
      : t_(transform), twisted_(twisted), zeros_(size) {
    std::memset(static_cast<void*>(zeros_.data()), 0, size * sizeof(Storage));
  }

  // `size` values of each row at `offset`, for the first stage to read, or already in z where it cannot. `conjugate`
  // packs a pair as x1 - i·x2.
  void load(const Pair<Storage>* pairs, int count, int64_t offset, int64_t size, bool conjugate, C* z,
            RowSource<Storage>* sources) const {
    for (int p = 0; p < count; ++p, z += t_.vectors()) {
      const RowScale<Scalar>* scale = pairs[p].scale;
      const auto row = [&](int i) {
        return pairs[p].row[i] != nullptr && scale[i].finite ? pairs[p].row[i] + offset : zeros_.data();
      };
      const Scalar in1 = conjugate ? -scale[1].in : scale[1].in;
      sources[p] = {};
      if (direct()) {
        sources[p] = {{row(0), row(1)}, {scale[0].in, in1}, size};
      } else {
        load_pair(t_, size, row(0), row(1), scale[0].in, in1, twisted_, z);
      }
    }
  }

  // Lets the last stage write the rows where it can.
  void aim(const Pair<Storage>* pairs, int count, int64_t tokens, const Destination<Storage>& to,
           RowSink<Storage>* sinks) const {
    std::fill(sinks, sinks + count, RowSink<Storage>{});
    for (int p = 0; direct() && p < count; ++p) {
      const Pair<Storage>& pair = pairs[p];
      if (pair.token + 1 >= tokens || !pair.scale[0].regular() || !pair.scale[1].regular()) continue;
      sinks[p].size = to.size;
      for (int i = 0; i < 2; ++i) {
        const int64_t offset = to.block * to.size;
        sinks[p].row[i] = to.out + (pair.token + i) * to.width + offset;
        sinks[p].base[i] = to.base ? to.base.at(pair.token + i) + offset : nullptr;
        sinks[p].factor[i] = to.factor(i) * pair.scale[i].out;
      }
    }
  }

  // Writes the rows that the last stage left in z.
  void store(const Pair<Storage>* pairs, int count, int64_t tokens, const Destination<Storage>& to, const C* z,
             const RowSink<Storage>* sinks) const {
    for (int p = 0; p < count; ++p, z += t_.vectors()) {
      if (sinks[p].row[0] != nullptr) continue;
      for (int i = 0; i < 2 && pairs[p].token + i < tokens; ++i) {
        store_token(pairs[p].token + i, i, pairs[p].scale[i], to, z);
      }
    }
  }

 private:
  // The first stage can read rows and the last can write them.
  bool direct() const { return !twisted_ && !t_.plan().stages.empty() && has_butterfly(t_.plan().stages[0].radix); }

  void store_token(int64_t token, int part, const RowScale<Scalar>& scale, const Destination<Storage>& to,
                   const C* z) const {
    const int64_t offset = to.block * to.size;
    const Storage* add = to.base ? to.base.at(token) + offset : nullptr;
    Storage* row = to.out + token * to.width + offset;
    if (!scale.regular()) {
      store_constant(to.size, scale.finite ? Scalar{0} : std::numeric_limits<Scalar>::quiet_NaN(), add, row);
    } else if (part == 0) {
      store_row<0>(t_, to.size, z, to.factor(0) * scale.out, twisted_, add, row);
    } else {
      store_row<1>(t_, to.size, z, to.factor(1) * scale.out, twisted_, add, row);
    }
  }

  const Transform<Scalar>& t_;
  const bool twisted_;
  const Buffer<Storage> zeros_;
};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
