// What a walk does: to a spectrum, from a spectrum, through a product with one, and through both gradients of that.
#pragma once

#include "stages.h"
#include "tiles.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

// Items worth a thread, whose walks read or write so many values each.
inline int64_t grain_of_walks(int64_t values) {
  constexpr int64_t kValuesWorthAThread = 16 * 1024;
  return std::max<int64_t>(1, kValuesWorthAThread / std::max<int64_t>(values, 1));
}

// u <- u ∘ factor, conj(u) ∘ factor if reflected, for a tile.
template <bool kReflected, class Scalar>
SURM_INLINE void multiply_tile(const Complex<Vector<Scalar>>* factor, Complex<Vector<Scalar>>* u) {
  SURM_UNROLL
  for (int k = 0; k < kTile<Scalar>; ++k) {
    u[k] = kReflected ? multiply<true>(factor[k], u[k].re, u[k].im) : multiply<false>(u[k], factor[k].re, factor[k].im);
  }
}

// Rows to their spectrum: tile(u, position) gets every tile of it, in the order of the walk.
template <class Storage, class Tile>
struct Inward {
  using Scalar = ComputeType<Storage>;
  using C = Complex<Vector<Scalar>>;
  const Transform<Scalar>& transform;
  C* z;
  const RowSource<Storage>* sources;
  Prefetch& prefetch;
  const Tile& tile;
  int64_t position = 0;

  void stage_in(size_t stage, int64_t offset, int64_t blocks) {
    walk_stage_in(transform, stage, z, offset, blocks, sources, prefetch);
  }
  void stage_out(size_t, int64_t, int64_t) {}
  void middle(int64_t offset, int64_t count) {
    const auto one = [&](C* row) SURM_INLINE_LAMBDA {
      prefetch.step();
      C u[kTile<Scalar>];
      tile_forward<Scalar>(row, u);
      tile(u, position);
      position += kTile<Scalar>;
    };
    for_each_tile<Scalar>(count, one, z + offset);
  }
};

// The way back: tile(u, position) fills every tile.
template <class Storage, class Tile>
struct Outward {
  using Scalar = ComputeType<Storage>;
  using C = Complex<Vector<Scalar>>;
  const Transform<Scalar>& transform;
  C* z;
  const RowSink<Storage>* sinks;
  Prefetch& prefetch;
  const Tile& tile;
  int64_t position = 0;

  void stage_in(size_t, int64_t, int64_t) {}
  void stage_out(size_t stage, int64_t offset, int64_t blocks) {
    walk_stage_out(transform, stage, z, offset, blocks, sinks, prefetch);
  }
  void middle(int64_t offset, int64_t count) {
    const auto one = [&](C* row) SURM_INLINE_LAMBDA {
      prefetch.step();
      C u[kTile<Scalar>];
      tile(u, position);
      tile_inverse<Scalar>(u, row);
      position += kTile<Scalar>;
    };
    for_each_tile<Scalar>(count, one, z + offset);
  }
};

// Walks `pairs` packed rows z, or those that `sources` (may be null) names, to their spectrum.
template <class Storage, class Tile>
void walk_in(const Transform<ComputeType<Storage>>& transform, int pairs, Complex<Vector<ComputeType<Storage>>>* z,
             const RowSource<Storage>* sources, Prefetch& prefetch, const Tile& tile) {
  Inward<Storage, Tile> work{transform, z, sources, prefetch, tile};
  descend(transform, work, 0, 0, pairs);
}

// Walks from a spectrum to `pairs` packed rows z, or to those that `sinks` (may be null) names.
template <class Storage, class Tile>
void walk_out(const Transform<ComputeType<Storage>>& transform, int pairs, Complex<Vector<ComputeType<Storage>>>* z,
              const RowSink<Storage>* sinks, Prefetch& prefetch, const Tile& tile) {
  Outward<Storage, Tile> work{transform, z, sinks, prefetch, tile};
  descend(transform, work, 0, 0, pairs);
}

// Rows to a spectrum in memory.
template <class Storage>
void to_spectrum(const Transform<ComputeType<Storage>>& transform, int pairs, Complex<Vector<ComputeType<Storage>>>* z,
                 const RowSource<Storage>* sources, Prefetch& prefetch,
                 Complex<Vector<ComputeType<Storage>>>* spectrum) {
  using Scalar = ComputeType<Storage>;
  walk_in(transform, pairs, z, sources, prefetch, [=](Complex<Vector<Scalar>>* u, int64_t at) SURM_INLINE_LAMBDA {
    SURM_UNROLL
    for (int k = 0; k < kTile<Scalar>; ++k) spectrum[at + k] = u[k];
  });
}

// A spectrum in memory to rows.
template <class Storage>
void from_spectrum(const Transform<ComputeType<Storage>>& transform, int pairs,
                   const Complex<Vector<ComputeType<Storage>>>* spectrum, const RowSink<Storage>* sinks,
                   Prefetch& prefetch, Complex<Vector<ComputeType<Storage>>>* z) {
  using Scalar = ComputeType<Storage>;
  walk_out(transform, pairs, z, sinks, prefetch, [=](Complex<Vector<Scalar>>* u, int64_t at) SURM_INLINE_LAMBDA {
    SURM_UNROLL
    for (int k = 0; k < kTile<Scalar>; ++k) u[k] = spectrum[at + k];
  });
}

// Rows times a spectrum and back, in place: the spectrum of the rows only ever exists in registers. Reflected: rows
// whose order is reversed (modulo the length), packed as x1 - i·x2; the spectrum of a reversed real row is the
// conjugate.
template <class Storage>
struct Product {
  using Scalar = ComputeType<Storage>;
  using C = Complex<Vector<Scalar>>;
  const Transform<Scalar>& transform;
  C* z;
  const RowSource<Storage>* sources;
  const RowSink<Storage>* sinks;
  const C* factor;
  bool reflected;
  Prefetch& prefetch;

  void stage_in(size_t stage, int64_t offset, int64_t blocks) {
    walk_stage_in(transform, stage, z, offset, blocks, sources, prefetch);
  }
  void stage_out(size_t stage, int64_t offset, int64_t blocks) {
    walk_stage_out(transform, stage, z, offset, blocks, sinks, prefetch);
  }
  void middle(int64_t offset, int64_t count) { reflected ? tiles<true>(offset, count) : tiles<false>(offset, count); }

 private:
  template <bool kReflected>
  void tiles(int64_t offset, int64_t count) {
    constexpr int T = kTile<Scalar>;
    const auto tile = [&](C* row) SURM_INLINE_LAMBDA {
      prefetch.step();
      C u[T];
      tile_forward<Scalar>(row, u);
      multiply_tile<kReflected, Scalar>(factor, u);
      tile_inverse<Scalar>(u, row);
      factor += T;
    };
    for_each_tile<Scalar>(count, tile, z + offset);
  }
};

// Both gradients in one walk: sum += ĝ ∘ conj(x̂), and g <- back(ĝ ∘ factor) if a factor is given. Reflected, with g
// packed as g1 - i·g2: sum += ĝ ∘ x̂, a convolution, and g <- back(conj(ĝ) ∘ factor).
template <class Storage>
struct ProductPullback {
  using Scalar = ComputeType<Storage>;
  using C = Complex<Vector<Scalar>>;
  const Transform<Scalar>& transform;
  C* g;
  C* x;
  const RowSource<Storage>*g_sources, *x_sources;
  const RowSink<Storage>* g_sinks;
  const C* factor;
  C* sum;
  bool reflected;
  Prefetch& prefetch;

  void stage_in(size_t stage, int64_t offset, int64_t blocks) {
    walk_stage_in(transform, stage, x, offset, blocks, x_sources, prefetch);
    walk_stage_in(transform, stage, g, offset, blocks, g_sources, prefetch);
  }
  void stage_out(size_t stage, int64_t offset, int64_t blocks) {
    if (factor != nullptr) walk_stage_out(transform, stage, g, offset, blocks, g_sinks, prefetch);
  }
  void middle(int64_t offset, int64_t count) { reflected ? tiles<true>(offset, count) : tiles<false>(offset, count); }

 private:
  template <bool kReflected>
  void tiles(int64_t offset, int64_t count) {
    constexpr int T = kTile<Scalar>;
    const auto tile = [&](C* g_row, C* x_row) SURM_INLINE_LAMBDA {
      prefetch.step();
      C x_hat[T], u[T];
      tile_forward<Scalar>(x_row, x_hat);
      tile_forward<Scalar>(g_row, u);
      SURM_UNROLL
      for (int k = 0; k < T; ++k) {
        sum[k] = sum[k] + (kReflected ? multiply<false>(u[k], x_hat[k].re, x_hat[k].im)
                                      : multiply<true>(u[k], x_hat[k].re, x_hat[k].im));
      }
      sum += T;
      if (factor == nullptr) return;
      multiply_tile<kReflected, Scalar>(factor, u);
      tile_inverse<Scalar>(u, g_row);
      factor += T;
    };
    for_each_tile<Scalar>(count, tile, g + offset, x + offset);
  }
};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
