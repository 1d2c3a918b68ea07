// The transform of one or more packed rows, depth first, with the work on the spectrum in the middle.
//
// A packed row is x1 + i·x2 for two real rows, stored as length/L complex vectors, L consecutive elements in the lanes
// (twiddle factors are vectors, and a row of 4096 floats lives in 32 KiB of L1). After the stages every vector holds an
// independent transform of length L; L of them form a tile that is transposed in registers and finished by a radix-L
// butterfly: the spectrum exists tile by tile. Work on the spectrum happens right there, before the way back.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "../plan/plan.h"
#include "vector.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

// Cache-line aligned memory without construction.
template <class Element>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) : data_(allocate(count)) {}
  Element* data() const { return data_.get(); }
  Element& operator[](size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(Element* p) const { std::free(p); }
  };
  static Element* allocate(size_t count) {
    const size_t bytes = (count * sizeof(Element) + 63) / 64 * 64;
    void* p = std::aligned_alloc(64, bytes == 0 ? 64 : bytes);
    if (p == nullptr) throw std::bad_alloc();
    return static_cast<Element*>(p);
  }
  std::unique_ptr<Element, Free> data_;
};

// A plan with its factors laid out for this instruction set.
template <class Scalar>
class Transform {
 public:
  static constexpr int L = kLanes<Scalar>;
  using V = Vector<Scalar>;
  using C = Complex<V>;

  explicit Transform(int64_t size) : plan_(make_plan(size, L)) {
    const auto factors = twiddle_factors<Scalar>(plan_, L);
    twiddles_ = Buffer<Scalar>(factors.size());
    if (!factors.empty()) std::memcpy(twiddles_.data(), factors.data(), factors.size() * sizeof(Scalar));
    size_t at = 0;
    for (const Stage& stage : plan_.stages) {
      starts_.push_back(at);
      at += 2 * (stage.radix - 1) * stage.stride;
    }
    make_generic_turns();
    make_twist();
    // A register tile wants L vectors; short rows are taken several pairs at a time to fill it.
    const int64_t in_row = vectors();
    while (pairs_ < L && in_row < 4 * L && in_row * pairs_ % L != 0) pairs_ *= 2;
    tiles_ = count_tiles(0, pairs_);
  }

  const Plan& plan() const { return plan_; }
  int64_t vectors() const { return plan_.length / L; }                          // of a packed row
  int pairs() const { return pairs_; }                                          // packed rows transformed together
  int64_t spectrum_vectors() const { return tiles_ * L; }                       // of `pairs` packed rows
  const V* twist() const { return reinterpret_cast<const V*>(twist_.data()); }  // exp(iπ j/n), re and im

  const V* twiddles(size_t stage) const { return reinterpret_cast<const V*>(twiddles_.data() + starts_[stage]); }
  const Scalar* generic_turns(size_t stage) const { return turns_.data() + stage * 2 * kLargestRadix; }

  // A block above this size is split depth first, so that its parts stay in L1.
  static constexpr int64_t kCacheVectors = 32 * 1024 / static_cast<int64_t>(sizeof(C));

 private:
  void make_generic_turns() {
    turns_.resize(plan_.stages.size() * 2 * kLargestRadix);
    for (size_t s = 0; s < plan_.stages.size(); ++s) {
      const int radix = plan_.stages[s].radix;
      for (int k = 0; k < radix && radix <= kLargestRadix; ++k) {
        turns_[(s * kLargestRadix + k) * 2] = static_cast<Scalar>(surm::detail::turn_cos(k, radix));
        turns_[(s * kLargestRadix + k) * 2 + 1] = static_cast<Scalar>(surm::detail::turn_sin(k, radix));
      }
    }
  }

  void make_twist() {
    if (plan_.embedded()) return;
    twist_ = Buffer<Scalar>(2 * plan_.length);
    const double pi = surm::detail::kPi;
    for (int64_t j = 0; j < plan_.length; ++j) {
      const double angle = pi * static_cast<double>(j) / static_cast<double>(plan_.length);
      twist_[j / L * 2 * L + j % L] = static_cast<Scalar>(std::cos(angle));
      twist_[j / L * 2 * L + L + j % L] = static_cast<Scalar>(std::sin(angle));
    }
  }

  int64_t count_tiles(size_t stage, int64_t blocks) const;

  Plan plan_;
  Buffer<Scalar> twiddles_, twist_;
  std::vector<size_t> starts_;
  std::vector<Scalar> turns_;
  int pairs_ = 1;
  int64_t tiles_ = 0;
};

// Walks the stages depth first: Work::stages_in before, Work::stages_out after what lies below, Work::middle at the
// bottom with `count` vectors starting at `offset`.
template <class Scalar, class Work>
void descend(const Transform<Scalar>& transform, Work& work, size_t stage, int64_t offset, int64_t blocks) {
  const auto& stages = transform.plan().stages;
  constexpr int L = kLanes<Scalar>;
  if (stage == stages.size()) {
    work.middle(offset, blocks);
    return;
  }
  const int64_t stride = stages[stage].stride / L;
  const int radix = stages[stage].radix;
  work.stage_in(stage, offset, blocks);
  if (blocks * radix * stride > Transform<Scalar>::kCacheVectors && stride >= L) {
    for (int64_t k = 0; k < blocks * radix; ++k) descend(transform, work, stage + 1, offset + k * stride, 1);
  } else {
    descend(transform, work, stage + 1, offset, blocks * radix);
  }
  work.stage_out(stage, offset, blocks);
}

template <class Scalar>
int64_t Transform<Scalar>::count_tiles(size_t stage, int64_t blocks) const {
  struct Counter {
    int64_t tiles = 0;
    void stage_in(size_t, int64_t, int64_t) {}
    void stage_out(size_t, int64_t, int64_t) {}
    void middle(int64_t, int64_t count) { tiles += (count + L - 1) / L; }
  } counter;
  descend(*this, counter, stage, 0, blocks);
  return counter.tiles;
}

// ---- stages ---------------------------------------------------------------------------------------------------------

template <int R, bool kInverse, class Scalar>
void run_stage(Complex<Vector<Scalar>>* z, int64_t blocks, int64_t stride, const Vector<Scalar>* twiddles) {
  for (int64_t block = 0; block < blocks; ++block, z += R * stride) {
    const Vector<Scalar>* w = twiddles;
    for (int64_t j = 0; j < stride; ++j, w += 2 * (R - 1)) {
      Complex<Vector<Scalar>> u[R];
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
                       const Vector<Scalar>* twiddles, const Scalar* turns) {
  for (int64_t block = 0; block < blocks; ++block, z += radix * stride) {
    const Vector<Scalar>* w = twiddles;
    for (int64_t j = 0; j < stride; ++j, w += 2 * (radix - 1)) {
      Complex<Vector<Scalar>> u[kLargestRadix];
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

template <bool kInverse, class Scalar>
void run_stage(const Transform<Scalar>& transform, size_t stage, Complex<Vector<Scalar>>* z, int64_t blocks) {
  const int radix = transform.plan().stages[stage].radix;
  const int64_t stride = transform.plan().stages[stage].stride / kLanes<Scalar>;
  const Vector<Scalar>* w = transform.twiddles(stage);
  switch (radix) {
    case 2:
      return run_stage<2, kInverse, Scalar>(z, blocks, stride, w);
    case 3:
      return run_stage<3, kInverse, Scalar>(z, blocks, stride, w);
    case 4:
      return run_stage<4, kInverse, Scalar>(z, blocks, stride, w);
    case 5:
      return run_stage<5, kInverse, Scalar>(z, blocks, stride, w);
    case 6:
      return run_stage<6, kInverse, Scalar>(z, blocks, stride, w);
    case 7:
      return run_stage<7, kInverse, Scalar>(z, blocks, stride, w);
    case 8:
      return run_stage<8, kInverse, Scalar>(z, blocks, stride, w);
    case 9:
      return run_stage<9, kInverse, Scalar>(z, blocks, stride, w);
    case 11:
      return run_stage<11, kInverse, Scalar>(z, blocks, stride, w);
    case 12:
      return run_stage<12, kInverse, Scalar>(z, blocks, stride, w);
    case 13:
      return run_stage<13, kInverse, Scalar>(z, blocks, stride, w);
    case 16:
      return run_stage<16, kInverse, Scalar>(z, blocks, stride, w);
    default:
      return run_generic_stage<kInverse>(radix, z, blocks, stride, w, transform.generic_turns(stage));
  }
}

// ---- tiles ----------------------------------------------------------------------------------------------------------

// `count` <= L vectors, each an independent transform of length L, to their spectrum: output k holds frequency k of
// transform j in lane j.
template <class Scalar>
SURM_INLINE void tile_forward(const Complex<Vector<Scalar>>* z, int64_t count, Complex<Vector<Scalar>>* u) {
  constexpr int L = kLanes<Scalar>;
  Vector<Scalar> re[L], im[L];
  if (count >= L) {
    SURM_UNROLL
    for (int k = 0; k < L; ++k) re[k] = z[k].re;
    transpose<Scalar>(re);
    SURM_UNROLL
    for (int k = 0; k < L; ++k) im[k] = z[k].im;
    transpose<Scalar>(im);
  } else {
    for (int k = 0; k < L; ++k) {
      re[k] = k < count ? z[k].re : Vector<Scalar>{};
      im[k] = k < count ? z[k].im : Vector<Scalar>{};
    }
    transpose<Scalar>(re);
    transpose<Scalar>(im);
  }
  SURM_UNROLL
  for (int k = 0; k < L; ++k) u[k] = {re[k], im[k]};
  Butterfly<L, false>::apply(u);
}

template <class Scalar>
SURM_INLINE void tile_inverse(Complex<Vector<Scalar>>* u, int64_t count, Complex<Vector<Scalar>>* z) {
  constexpr int L = kLanes<Scalar>;
  Butterfly<L, true>::apply(u);
  Vector<Scalar> re[L], im[L];
  SURM_UNROLL
  for (int k = 0; k < L; ++k) re[k] = u[k].re;
  SURM_UNROLL
  for (int k = 0; k < L; ++k) im[k] = u[k].im;
  transpose<Scalar>(re);
  transpose<Scalar>(im);
  if (count >= L) {
    SURM_UNROLL
    for (int k = 0; k < L; ++k) z[k] = {re[k], im[k]};
  } else {
    for (int64_t k = 0; k < count; ++k) z[k] = {re[k], im[k]};
  }
}

// Memory the next unit will need, asked for a little at every tile, so that it arrives while this unit computes.
class Prefetch {
 public:
  // `bytes` from `from` on, in `tiles` equal parts; `written`: the lines will be overwritten.
  void add(const void* from, int64_t bytes, int64_t tiles, bool written) {
    const char* at = static_cast<const char*>(from);
    streams_[count_++] = {at, at + bytes, (bytes + tiles - 1) / tiles, written};
  }
  void step() {
    for (int i = 0; i < count_; ++i) {
      Stream& stream = streams_[i];
      const char* end = std::min(stream.end, stream.at + stream.step);
      for (; stream.at < end; stream.at += 64) {
        stream.written ? __builtin_prefetch(stream.at, 1, 2) : __builtin_prefetch(stream.at, 0, 2);
      }
    }
  }

 private:
  struct Stream {
    const char *at, *end;
    int64_t step;
    bool written;
  };
  Stream streams_[3];
  int count_ = 0;
};

// ---- works ----------------------------------------------------------------------------------------------------------

// Rows to their spectrum, written tile by tile in the order of the walk.
template <class Scalar>
struct ToSpectrum {
  using C = Complex<Vector<Scalar>>;
  const Transform<Scalar>& transform;
  C* z;
  C* spectrum;

  void stage_in(size_t stage, int64_t offset, int64_t blocks) {
    run_stage<false>(transform, stage, z + offset, blocks);
  }
  void stage_out(size_t, int64_t, int64_t) {}
  void middle(int64_t offset, int64_t count) {
    constexpr int L = kLanes<Scalar>;
    for (int64_t v = 0; v < count; v += L, spectrum += L) tile_forward<Scalar>(z + offset + v, count - v, spectrum);
  }
};

// The way back.
template <class Scalar>
struct FromSpectrum {
  using C = Complex<Vector<Scalar>>;
  const Transform<Scalar>& transform;
  C* z;
  const C* spectrum;

  void stage_in(size_t, int64_t, int64_t) {}
  void stage_out(size_t stage, int64_t offset, int64_t blocks) {
    run_stage<true>(transform, stage, z + offset, blocks);
  }
  void middle(int64_t offset, int64_t count) {
    constexpr int L = kLanes<Scalar>;
    for (int64_t v = 0; v < count; v += L, spectrum += L) {
      C u[L];
      SURM_UNROLL
      for (int k = 0; k < L; ++k) u[k] = spectrum[k];
      tile_inverse<Scalar>(u, count - v, z + offset + v);
    }
  }
};

// Rows times a spectrum and back, in place: the spectrum of the rows only ever exists in registers.
template <class Scalar>
struct Product {
  using C = Complex<Vector<Scalar>>;
  const Transform<Scalar>& transform;
  C* z;
  const C* factor;
  Prefetch prefetch;

  void stage_in(size_t stage, int64_t offset, int64_t blocks) {
    run_stage<false>(transform, stage, z + offset, blocks);
  }
  void stage_out(size_t stage, int64_t offset, int64_t blocks) {
    run_stage<true>(transform, stage, z + offset, blocks);
  }
  void middle(int64_t offset, int64_t count) {
    constexpr int L = kLanes<Scalar>;
    for (int64_t v = 0; v < count; v += L, factor += L) {
      C u[L];
      prefetch.step();
      tile_forward<Scalar>(z + offset + v, count - v, u);
      SURM_UNROLL
      for (int k = 0; k < L; ++k) u[k] = multiply<false>(u[k], factor[k].re, factor[k].im);
      tile_inverse<Scalar>(u, count - v, z + offset + v);
    }
  }
};

// Both gradients in one walk: sum += ĝ ∘ conj(x̂), and g <- back(ĝ ∘ factor) if a factor is given.
template <class Scalar>
struct ProductPullback {
  using C = Complex<Vector<Scalar>>;
  const Transform<Scalar>& transform;
  C* g;
  C* x;
  const C* factor;
  C* sum;
  Prefetch prefetch;

  void stage_in(size_t stage, int64_t offset, int64_t blocks) {
    run_stage<false>(transform, stage, x + offset, blocks);
    run_stage<false>(transform, stage, g + offset, blocks);
  }
  void stage_out(size_t stage, int64_t offset, int64_t blocks) {
    if (factor != nullptr) run_stage<true>(transform, stage, g + offset, blocks);
  }
  void middle(int64_t offset, int64_t count) {
    constexpr int L = kLanes<Scalar>;
    for (int64_t v = 0; v < count; v += L, sum += L) {
      C x_hat[L], u[L];
      prefetch.step();
      tile_forward<Scalar>(x + offset + v, count - v, x_hat);
      tile_forward<Scalar>(g + offset + v, count - v, u);
      SURM_UNROLL
      for (int k = 0; k < L; ++k) sum[k] = sum[k] + multiply<true>(u[k], x_hat[k].re, x_hat[k].im);
      if (factor == nullptr) continue;
      SURM_UNROLL
      for (int k = 0; k < L; ++k) u[k] = multiply<false>(u[k], factor[k].re, factor[k].im);
      tile_inverse<Scalar>(u, count - v, g + offset + v);
      factor += L;
    }
  }
};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
