// The bottom of a walk: the last radix of a transform, between and inside the 128-bit blocks of a few vectors.
#pragma once

#include <algorithm>

#include "transform.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

// A tile is kTile vectors, each an independent transform of length L = blocks × block lanes. Radix `blocks` runs
// between the 128-bit blocks, radix `block lanes` inside them, each after a transposition that brings its inputs into
// the same lane of different vectors. kTile vectors fit the registers with room for the arithmetic. w^(jk) for lane j
// of a block: the twiddles between the two radices.
template <class Scalar>
struct TileTwiddles {
  alignas(64) Scalar re[kBlocks<Scalar>][kLanes<Scalar>] = {};
  alignas(64) Scalar im[kBlocks<Scalar>][kLanes<Scalar>] = {};
  constexpr TileTwiddles() {
    for (int k = 0; k < kBlocks<Scalar>; ++k) {
      for (int lane = 0; lane < kLanes<Scalar>; ++lane) {
        const int phase = lane % kBlockLanes<Scalar> * k;
        re[k][lane] = static_cast<Scalar>(surm::detail::turn_cos(phase, kLanes<Scalar>));
        im[k][lane] = static_cast<Scalar>(-surm::detail::turn_sin(phase, kLanes<Scalar>));
      }
    }
  }
};
template <class Scalar>
constexpr TileTwiddles<Scalar> kTileTwiddles{};

// One radix over a tile: groups of R vectors, whose parts are `together`.
template <int R, bool kInverse, class Scalar>
SURM_INLINE void tile_butterflies(Vector<Scalar>* re, Vector<Scalar>* im) {
  SURM_UNROLL
  for (int first = 0; first < kTile<Scalar>; first += R) {
    Complex<Vector<Scalar>> u[R];
    SURM_UNROLL
    for (int k = 0; k < R; ++k) u[k] = {re[first + k], im[first + k]};
    Butterfly<R, kInverse>::apply(u);
    SURM_UNROLL
    for (int k = 0; k < R; ++k) re[first + k] = u[k].re, im[first + k] = u[k].im;
  }
}

template <bool kInverse, class Scalar>
SURM_INLINE void tile_twiddles(Vector<Scalar>* re, Vector<Scalar>* im) {
  SURM_UNROLL
  for (int v = 0; v < kTile<Scalar>; ++v) {
    const int k = v % kBlocks<Scalar>;
    if (k == 0) continue;
    const Complex<Vector<Scalar>> turned =
        multiply<kInverse>(Complex<Vector<Scalar>>{re[v], im[v]}, load_as<Vector<Scalar>>(kTileTwiddles<Scalar>.re[k]),
                           load_as<Vector<Scalar>>(kTileTwiddles<Scalar>.im[k]));
    re[v] = turned.re, im[v] = turned.im;
  }
}

template <class Scalar, class Transpose>
SURM_INLINE void tile_transpose(Vector<Scalar>* re, Vector<Scalar>* im, int group, const Transpose& transpose) {
  SURM_UNROLL
  for (int first = 0; first < kTile<Scalar>; first += group) {
    transpose(re + first);
    transpose(im + first);
  }
}

// A tile of vectors to its spectrum.
template <class Scalar>
SURM_INLINE void tile_forward(const Complex<Vector<Scalar>>* z, Complex<Vector<Scalar>>* u) {
  constexpr int T = kTile<Scalar>;
  Vector<Scalar> re[T], im[T];
  SURM_UNROLL
  for (int k = 0; k < T; ++k) re[k] = z[k].re, im[k] = z[k].im;
  if constexpr (kBlocks<Scalar> > 1) {
    tile_transpose<Scalar>(re, im, kBlocks<Scalar>, transpose_blocks<Scalar>);
    tile_butterflies<kBlocks<Scalar>, false, Scalar>(re, im);
    tile_twiddles<false, Scalar>(re, im);
  }
  tile_transpose<Scalar>(re, im, kBlockLanes<Scalar>, transpose_in_blocks<Scalar>);
  tile_butterflies<kBlockLanes<Scalar>, false, Scalar>(re, im);
  SURM_UNROLL
  for (int k = 0; k < T; ++k) u[k] = {re[k], im[k]};
}

// The way back.
template <class Scalar>
SURM_INLINE void tile_inverse(const Complex<Vector<Scalar>>* u, Complex<Vector<Scalar>>* z) {
  constexpr int T = kTile<Scalar>;
  Vector<Scalar> re[T], im[T];
  SURM_UNROLL
  for (int k = 0; k < T; ++k) re[k] = u[k].re, im[k] = u[k].im;
  tile_butterflies<kBlockLanes<Scalar>, true, Scalar>(re, im);
  tile_transpose<Scalar>(re, im, kBlockLanes<Scalar>, transpose_in_blocks<Scalar>);
  if constexpr (kBlocks<Scalar> > 1) {
    tile_twiddles<true, Scalar>(re, im);
    tile_butterflies<kBlocks<Scalar>, true, Scalar>(re, im);
    tile_transpose<Scalar>(re, im, kBlocks<Scalar>, transpose_blocks<Scalar>);
  }
  SURM_UNROLL
  for (int k = 0; k < T; ++k) z[k] = {re[k], im[k]};
}

// Calls body(z…) for every tile of `count` vectors of one or more rows; the last, if not full, on copies filled up with
// zeros.
template <class Scalar, class Body, class... Rows>
SURM_INLINE void for_each_tile(int64_t count, const Body& body, Rows*... z) {
  constexpr int T = kTile<Scalar>;
  for (; count >= T; count -= T) {
    body(z...);
    ((z += T), ...);
  }
  if (count == 0) return;
  struct Padded {
    Complex<Vector<Scalar>> tile[T] = {};
    Complex<Vector<Scalar>>* row;
    int64_t count;
    Padded(Complex<Vector<Scalar>>* z, int64_t n) : row(z), count(n) { std::copy(z, z + n, tile); }
    ~Padded() { std::copy(tile, tile + count, row); }
  };
  body(Padded(z, count).tile...);
}

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
