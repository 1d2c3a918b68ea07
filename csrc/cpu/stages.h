// The stages of a walk: butterflies between vectors, with the rows read by the first and written by the last.
#pragma once

#include "transform.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

// Memory that will be needed soon, asked for a few lines at every step of a walk: L1 has buffers for few lines under
// way, and a longer burst would stall.
class Prefetch {
 public:
  void add(const void* from, int64_t bytes) {
    streams_[count_++] = {static_cast<const char*>(from), static_cast<const char*>(from) + bytes};
  }

  // The streams take turns.
  SURM_INLINE void step() {
    Stream& stream = streams_[turn_];
    turn_ = turn_ + 1 < count_ ? turn_ + 1 : 0;
    if (stream.at >= stream.end) return;
    SURM_UNROLL
    for (int line = 0; line < kLines; ++line) __builtin_prefetch(stream.at + 64 * line, 0, 2);
    stream.at += 64 * kLines;
  }

 private:
  static constexpr int kLines = 8;
  struct Stream {
    const char *at = nullptr, *end = nullptr;
  };
  Stream streams_[3];
  int count_ = 0, turn_ = 0;
};

template <int R, bool kInverse, class Scalar>
void run_stage(Complex<Vector<Scalar>>* z, int64_t blocks, int64_t stride, const Vector<Scalar>* twiddles,
               Prefetch& prefetch) {
  for (int64_t block = 0; block < blocks; ++block, z += R * stride) {
    const Vector<Scalar>* w = twiddles;
    for (int64_t j = 0; j < stride; ++j, w += 2 * (R - 1)) {
      Complex<Vector<Scalar>> u[R];
      prefetch.step();
      u[0] = z[j];
      SURM_UNROLL
      for (int k = 1; k < R; ++k) {
        u[k] = z[j + k * stride];
        if (kInverse) u[k] = multiply<true>(u[k], w[2 * k - 2], w[2 * k - 1]);
      }
      Butterfly<R, kInverse>::apply(u);
      z[j] = u[0];
      SURM_UNROLL
      for (int k = 1; k < R; ++k) {
        z[j + k * stride] = kInverse ? u[k] : multiply<false>(u[k], w[2 * k - 2], w[2 * k - 1]);
      }
    }
  }
}

template <bool kInverse, class Scalar>
void run_generic_stage(int radix, Complex<Vector<Scalar>>* z, int64_t blocks, int64_t stride,
                       const Vector<Scalar>* twiddles, const Scalar* turns, Prefetch& prefetch) {
  for (int64_t block = 0; block < blocks; ++block, z += radix * stride) {
    const Vector<Scalar>* w = twiddles;
    for (int64_t j = 0; j < stride; ++j, w += 2 * (radix - 1)) {
      Complex<Vector<Scalar>> u[kLargestRadix];
      prefetch.step();
      u[0] = z[j];
      for (int k = 1; k < radix; ++k) {
        u[k] = z[j + k * stride];
        if (kInverse) u[k] = multiply<true>(u[k], w[2 * k - 2], w[2 * k - 1]);
      }
      generic_odd_butterfly<kInverse, kLargestRadix>(u, radix, turns);
      z[j] = u[0];
      for (int k = 1; k < radix; ++k) {
        z[j + k * stride] = kInverse ? u[k] : multiply<false>(u[k], w[2 * k - 2], w[2 * k - 1]);
      }
    }
  }
}

// Calls body with the radix as a compile-time constant; false if no butterfly is written for it.
template <class Body>
SURM_INLINE bool with_butterfly(int radix, const Body& body) {
  switch (radix) {
#define SURM_RADIX(R)                       \
  case R:                                   \
    body(std::integral_constant<int, R>{}); \
    return true;
    SURM_RADIX(2)
    SURM_RADIX(3)
    SURM_RADIX(4)
    SURM_RADIX(5)
    SURM_RADIX(6)
    SURM_RADIX(7)
    SURM_RADIX(8)
    SURM_RADIX(9)
    SURM_RADIX(11)
    SURM_RADIX(12)
    SURM_RADIX(13)
    SURM_RADIX(16)
#undef SURM_RADIX
    default:
      return false;
  }
}

template <bool kInverse, class Scalar>
void run_stage(const Transform<Scalar>& transform, size_t stage, Complex<Vector<Scalar>>* z, int64_t blocks,
               Prefetch& prefetch) {
  const int radix = transform.plan().stages[stage].radix;
  const int64_t stride = transform.plan().stages[stage].stride / kLanes<Scalar>;
  const Vector<Scalar>* w = transform.twiddles(stage);
  const bool done = with_butterfly(
      radix, [&](auto r) { run_stage<decltype(r)::value, kInverse, Scalar>(z, blocks, stride, w, prefetch); });
  if (!done) run_generic_stage<kInverse>(radix, z, blocks, stride, w, transform.generic_turns(stage), prefetch);
}

// Two real rows that the first stage reads itself, without a pass of its own: z = in[0] row[0] + i in[1] row[1].
// No rows: z holds the packed row already.
template <class Storage>
struct RowSource {
  const Storage* row[2] = {nullptr, nullptr};
  ComputeType<Storage> in[2] = {0, 0};
};

// Two real rows that the last stage writes itself: row = base + factor · part of z; base may be null for both.
// No rows: the packed row stays in z.
template <class Storage>
struct RowSink {
  Storage* row[2] = {nullptr, nullptr};
  const Storage* base[2] = {nullptr, nullptr};
  ComputeType<Storage> factor[2] = {0, 0};
};

template <int R, class Storage, class Scalar = ComputeType<Storage>>
void run_first_stage(const RowSource<Storage>& source, Complex<Vector<Scalar>>* z, int64_t stride,
                     const Vector<Scalar>* w, Prefetch& prefetch) {
  constexpr int L = kLanes<Scalar>;
  const Storage *re = source.row[0], *im = source.row[1];
  const Scalar re_in = source.in[0], im_in = source.in[1];
  for (int64_t j = 0; j < stride; ++j, w += 2 * (R - 1)) {
    Complex<Vector<Scalar>> u[R];
    prefetch.step();
    SURM_UNROLL
    for (int k = 0; k < R; ++k) {
      const int64_t at = (j + k * stride) * L;
      u[k] = {load_vector(re + at) * re_in, load_vector(im + at) * im_in};
    }
    Butterfly<R, false>::apply(u);
    z[j] = u[0];
    SURM_UNROLL
    for (int k = 1; k < R; ++k) z[j + k * stride] = multiply<false>(u[k], w[2 * k - 2], w[2 * k - 1]);
  }
}

template <int R, bool kBase, class Storage, class Scalar = ComputeType<Storage>>
void run_last_stage(const Complex<Vector<Scalar>>* z, const RowSink<Storage>& sink, int64_t stride,
                    const Vector<Scalar>* w, Prefetch& prefetch) {
  constexpr int L = kLanes<Scalar>;
  const RowSink<Storage> to = sink;
  for (int64_t j = 0; j < stride; ++j, w += 2 * (R - 1)) {
    Complex<Vector<Scalar>> u[R];
    prefetch.step();
    u[0] = z[j];
    SURM_UNROLL
    for (int k = 1; k < R; ++k) u[k] = multiply<true>(z[j + k * stride], w[2 * k - 2], w[2 * k - 1]);
    Butterfly<R, true>::apply(u);
    SURM_UNROLL
    for (int k = 0; k < R; ++k) {
      const int64_t at = (j + k * stride) * L;
      Vector<Scalar> re = u[k].re * to.factor[0], im = u[k].im * to.factor[1];
      if (kBase) re += load_vector(to.base[0] + at), im += load_vector(to.base[1] + at);
      store_vector(to.row[0] + at, re);
      store_vector(to.row[1] + at, im);
    }
  }
}

// One stage of `blocks` blocks of z on the way in; the first takes the rows that `sources` (may be null) names.
template <class Storage, class Scalar = ComputeType<Storage>>
void walk_stage_in(const Transform<Scalar>& transform, size_t stage, Complex<Vector<Scalar>>* z, int64_t offset,
                   int64_t blocks, const RowSource<Storage>* sources, Prefetch& prefetch) {
  if (stage > 0 || sources == nullptr) return run_stage<false>(transform, stage, z + offset, blocks, prefetch);
  const Stage& first = transform.plan().stages[0];
  for (int64_t pair = 0; pair < blocks; ++pair, z += transform.vectors()) {
    if (sources[pair].row[0] == nullptr) {
      run_stage<false>(transform, 0, z, 1, prefetch);
    } else {
      with_butterfly(first.radix, [&](auto r) {
        run_first_stage<decltype(r)::value>(sources[pair], z, first.stride / kLanes<Scalar>, transform.twiddles(0),
                                            prefetch);
      });
    }
  }
}

template <class Storage, class Scalar = ComputeType<Storage>>
void walk_stage_out(const Transform<Scalar>& transform, size_t stage, Complex<Vector<Scalar>>* z, int64_t offset,
                    int64_t blocks, const RowSink<Storage>* sinks, Prefetch& prefetch) {
  if (stage > 0 || sinks == nullptr) return run_stage<true>(transform, stage, z + offset, blocks, prefetch);
  const Stage& last = transform.plan().stages[0];
  const int64_t stride = last.stride / kLanes<Scalar>;
  for (int64_t pair = 0; pair < blocks; ++pair, z += transform.vectors()) {
    const RowSink<Storage>& sink = sinks[pair];
    if (sink.row[0] == nullptr) {
      run_stage<true>(transform, 0, z, 1, prefetch);
    } else {
      with_butterfly(last.radix, [&](auto r) {
        constexpr int R = decltype(r)::value;
        sink.base[0] != nullptr ? run_last_stage<R, true>(z, sink, stride, transform.twiddles(0), prefetch)
                                : run_last_stage<R, false>(z, sink, stride, transform.twiddles(0), prefetch);
      });
    }
  }
}

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
