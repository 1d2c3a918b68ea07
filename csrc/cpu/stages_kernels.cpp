// The stages of stages.h for every radix and storage type, compiled once per instruction set.
#include "../plan/radices.h"
#include "stages.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

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
#define SURM_RADIX(radix, cost)                 \
  case radix:                                   \
    body(std::integral_constant<int, radix>{}); \
    return true;
    SURM_FOR_RADICES(SURM_RADIX)
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

// The vectors of a row of `size` values: vector i is row + i·L while it lies in the row, then a copy of the last few
// values followed by zeros, then zeros. Results for the copy are written back by `finish`.
template <class Storage>
class PaddedRow {
  static constexpr int L = kLanes<ComputeType<Storage>>;

 public:
  PaddedRow(const Storage* row, int64_t size)
      : row_(row), whole_(row != nullptr ? size / L : 0), rest_(row != nullptr ? static_cast<int>(size % L) : 0) {
    std::memset(tail_, 0, sizeof(tail_));
    if (rest_ > 0) std::memcpy(tail_, row + whole_ * L, rest_ * sizeof(Storage));
  }

  SURM_INLINE const Storage* at(int64_t i) const { return i < whole_ ? row_ + i * L : tail_ + (i > whole_ ? L : 0); }
  SURM_INLINE Storage* at(int64_t i) { return const_cast<Storage*>(static_cast<const PaddedRow*>(this)->at(i)); }

  void finish() { std::memcpy(const_cast<Storage*>(row_) + whole_ * L, tail_, rest_ * sizeof(Storage)); }

 private:
  const Storage* row_;
  int64_t whole_;
  int rest_;
  alignas(64) Storage tail_[2 * L];
};

template <int R, class Scalar, class Load>
SURM_INLINE void first_stage(Complex<Vector<Scalar>>* z, int64_t stride, const Vector<Scalar>* w, Prefetch& prefetch,
                             const Load& load) {
  for (int64_t j = 0; j < stride; ++j, w += 2 * (R - 1)) {
    Complex<Vector<Scalar>> u[R];
    prefetch.step();
    SURM_UNROLL
    for (int k = 0; k < R; ++k) u[k] = load(j + k * stride);
    Butterfly<R, false>::apply(u);
    z[j] = u[0];
    SURM_UNROLL
    for (int k = 1; k < R; ++k) z[j + k * stride] = multiply<false>(u[k], w[2 * k - 2], w[2 * k - 1]);
  }
}

template <int R, class Storage, class Scalar = ComputeType<Storage>>
void run_first_stage(const RowSource<Storage>& source, Complex<Vector<Scalar>>* z, int64_t stride,
                     const Vector<Scalar>* w, Prefetch& prefetch) {
  constexpr int L = kLanes<Scalar>;
  const Storage *row0 = source.row[0], *row1 = source.row[1];
  const Scalar re_in = source.in[0], im_in = source.in[1];
  first_stage<R, Scalar>(z, stride, w, prefetch, [=](int64_t i) SURM_INLINE_LAMBDA {
    return Complex<Vector<Scalar>>{load_vector(row0 + i * L) * re_in, load_vector(row1 + i * L) * im_in};
  });
}

template <int R, class Storage, class Scalar = ComputeType<Storage>>
void run_padded_first_stage(const RowSource<Storage>& source, Complex<Vector<Scalar>>* z, int64_t stride,
                            const Vector<Scalar>* w, Prefetch& prefetch) {
  const PaddedRow<Storage> row0(source.row[0], source.size), row1(source.row[1], source.size);
  const Scalar re_in = source.in[0], im_in = source.in[1];
  first_stage<R, Scalar>(z, stride, w, prefetch, [&](int64_t i) SURM_INLINE_LAMBDA {
    return Complex<Vector<Scalar>>{load_vector(row0.at(i)) * re_in, load_vector(row1.at(i)) * im_in};
  });
}

template <int R, class Scalar, class Store>
SURM_INLINE void last_stage(const Complex<Vector<Scalar>>* z, int64_t stride, const Vector<Scalar>* w,
                            Prefetch& prefetch, const Store& store) {
  for (int64_t j = 0; j < stride; ++j, w += 2 * (R - 1)) {
    Complex<Vector<Scalar>> u[R];
    prefetch.step();
    u[0] = z[j];
    SURM_UNROLL
    for (int k = 1; k < R; ++k) u[k] = multiply<true>(z[j + k * stride], w[2 * k - 2], w[2 * k - 1]);
    Butterfly<R, true>::apply(u);
    SURM_UNROLL
    for (int k = 0; k < R; ++k) store(j + k * stride, u[k]);
  }
}

template <int R, bool kBase, class Storage, class Scalar = ComputeType<Storage>>
void run_last_stage(const Complex<Vector<Scalar>>* z, const RowSink<Storage>& sink, int64_t stride,
                    const Vector<Scalar>* w, Prefetch& prefetch) {
  constexpr int L = kLanes<Scalar>;
  const RowSink<Storage> to = sink;
  last_stage<R, Scalar>(z, stride, w, prefetch, [=](int64_t i, const Complex<Vector<Scalar>>& u) SURM_INLINE_LAMBDA {
    Vector<Scalar> re = u.re * to.factor[0], im = u.im * to.factor[1];
    if (kBase) re += load_vector(to.base[0] + i * L), im += load_vector(to.base[1] + i * L);
    store_vector(to.row[0] + i * L, re);
    store_vector(to.row[1] + i * L, im);
  });
}

template <int R, class Storage, class Scalar = ComputeType<Storage>>
void run_padded_last_stage(const Complex<Vector<Scalar>>* z, const RowSink<Storage>& sink, int64_t stride,
                           const Vector<Scalar>* w, Prefetch& prefetch) {
  PaddedRow<Storage> row0(sink.row[0], sink.size), row1(sink.row[1], sink.size);
  const PaddedRow<Storage> base0(sink.base[0], sink.size), base1(sink.base[1], sink.size);
  const Scalar re_out = sink.factor[0], im_out = sink.factor[1];
  last_stage<R, Scalar>(z, stride, w, prefetch, [&](int64_t i, const Complex<Vector<Scalar>>& u) SURM_INLINE_LAMBDA {
    store_vector(row0.at(i), u.re * re_out + load_vector(base0.at(i)));
    store_vector(row1.at(i), u.im * im_out + load_vector(base1.at(i)));
  });
  row0.finish(), row1.finish();
}

}  // namespace

template <class Storage>
void walk_stage_in(const Transform<ComputeType<Storage>>& transform, size_t stage,
                   Complex<Vector<ComputeType<Storage>>>* z, int64_t offset, int64_t blocks,
                   const RowSource<Storage>* sources, Prefetch& prefetch) {
  using Scalar = ComputeType<Storage>;
  if (stage > 0 || sources == nullptr) return run_stage<false>(transform, stage, z + offset, blocks, prefetch);
  const Stage& first = transform.plan().stages[0];
  for (int64_t pair = 0; pair < blocks; ++pair, z += transform.vectors()) {
    if (sources[pair].row[0] == nullptr) {
      run_stage<false>(transform, 0, z, 1, prefetch);
    } else {
      const int64_t stride = first.stride / kLanes<Scalar>;
      const bool whole = sources[pair].size == transform.plan().length;
      with_butterfly(first.radix, [&](auto r) {
        constexpr int R = decltype(r)::value;
        whole ? run_first_stage<R>(sources[pair], z, stride, transform.twiddles(0), prefetch)
              : run_padded_first_stage<R>(sources[pair], z, stride, transform.twiddles(0), prefetch);
      });
    }
  }
}

template <class Storage>
void walk_stage_out(const Transform<ComputeType<Storage>>& transform, size_t stage,
                    Complex<Vector<ComputeType<Storage>>>* z, int64_t offset, int64_t blocks,
                    const RowSink<Storage>* sinks, Prefetch& prefetch) {
  using Scalar = ComputeType<Storage>;
  if (stage > 0 || sinks == nullptr) return run_stage<true>(transform, stage, z + offset, blocks, prefetch);
  const Stage& last = transform.plan().stages[0];
  const int64_t stride = last.stride / kLanes<Scalar>;
  for (int64_t pair = 0; pair < blocks; ++pair, z += transform.vectors()) {
    const RowSink<Storage>& sink = sinks[pair];
    if (sink.row[0] == nullptr) {
      run_stage<true>(transform, 0, z, 1, prefetch);
    } else {
      const bool whole = sink.size == transform.plan().length, base = sink.base[0] != nullptr;
      with_butterfly(last.radix, [&](auto r) {
        constexpr int R = decltype(r)::value;
        const Vector<Scalar>* w = transform.twiddles(0);
        if (!whole) return run_padded_last_stage<R>(z, sink, stride, w, prefetch);
        base ? run_last_stage<R, true>(z, sink, stride, w, prefetch)
             : run_last_stage<R, false>(z, sink, stride, w, prefetch);
      });
    }
  }
}

template void walk_stage_in(const Transform<double>&, size_t, Complex<Vector<double>>*, int64_t, int64_t,
                            const RowSource<double>*, Prefetch&);
template void walk_stage_out(const Transform<double>&, size_t, Complex<Vector<double>>*, int64_t, int64_t,
                             const RowSink<double>*, Prefetch&);
template void walk_stage_in(const Transform<float>&, size_t, Complex<Vector<float>>*, int64_t, int64_t,
                            const RowSource<float>*, Prefetch&);
template void walk_stage_out(const Transform<float>&, size_t, Complex<Vector<float>>*, int64_t, int64_t,
                             const RowSink<float>*, Prefetch&);
template void walk_stage_in(const Transform<float>&, size_t, Complex<Vector<float>>*, int64_t, int64_t,
                            const RowSource<BFloat16>*, Prefetch&);
template void walk_stage_out(const Transform<float>&, size_t, Complex<Vector<float>>*, int64_t, int64_t,
                             const RowSink<BFloat16>*, Prefetch&);
template void walk_stage_in(const Transform<float>&, size_t, Complex<Vector<float>>*, int64_t, int64_t,
                            const RowSource<Float16>*, Prefetch&);
template void walk_stage_out(const Transform<float>&, size_t, Complex<Vector<float>>*, int64_t, int64_t,
                             const RowSink<Float16>*, Prefetch&);

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
