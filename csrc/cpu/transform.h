// The transform of one or more packed rows, depth first, with the work on the spectrum in the middle.
//
// A packed row is x1 + i·x2 for two real rows, stored as length/L complex vectors, L consecutive elements in the lanes
// (twiddle factors are vectors, and a row of 4096 floats lives in 32 KiB of L1). After the stages every vector holds an
// independent transform of length L, and a few of them form a tile that is finished in registers: the spectrum exists
// tile by tile. Work on the spectrum happens right there, before the way back.
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

// Vectors whose lanes are transformed together, in registers: one per 128-bit block, or one per lane of a block.
template <class Scalar>
constexpr int kTile = kBlocks<Scalar> > kBlockLanes<Scalar> ? kBlocks<Scalar> : kBlockLanes<Scalar>;

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
  }

  const Plan& plan() const { return plan_; }
  int64_t vectors() const { return plan_.length / L; }  // of a packed row
  // The fewest pairs to transform together: a tile wants kTile vectors, and several short rows fill it.
  int pairs_to_fill_tiles() const {
    int pairs = 1;
    while (pairs < kTile<Scalar> && vectors() < 8 * kTile<Scalar> && vectors() * pairs % kTile<Scalar> != 0) pairs *= 2;
    return pairs;
  }
  int64_t spectrum_vectors(int pairs) const { return count_tiles(0, pairs) * kTile<Scalar>; }
  const V* twist() const { return reinterpret_cast<const V*>(twist_.data()); }  // exp(iπ j/n), re and im

  const V* twiddles(size_t stage) const { return reinterpret_cast<const V*>(twiddles_.data() + starts_[stage]); }
  const Scalar* generic_turns(size_t stage) const { return turns_.data() + stage * 2 * kLargestRadix; }

  // A block above this size is split depth first, so that its parts stay in L1.
  static constexpr int64_t kCacheVectors = 24 * 1024 / static_cast<int64_t>(sizeof(C));

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
  // Decided by the block alone: the tiles must come out the same whatever number of blocks is walked together.
  if (radix * stride > Transform<Scalar>::kCacheVectors && stride >= kTile<Scalar>) {
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
    void middle(int64_t, int64_t count) { tiles += (count + kTile<Scalar> - 1) / kTile<Scalar>; }
  } counter;
  descend(*this, counter, stage, 0, blocks);
  return counter.tiles;
}

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

// ---- stages ---------------------------------------------------------------------------------------------------------

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

// ---- rows in the first and out of the last stage
// ----------------------------------------------------------------------

// Two real rows that the first stage reads itself, without a pass of its own: z = in[0] row[0] + i in[1] row[1].
// No rows: z holds the packed row already.
template <class Scalar>
struct RowSource {
  const Scalar* row[2] = {nullptr, nullptr};
  Scalar in[2] = {0, 0};
};

// Two real rows that the last stage writes itself: row = base + factor · part of z; base may be null for both.
// No rows: the packed row stays in z.
template <class Scalar>
struct RowSink {
  Scalar* row[2] = {nullptr, nullptr};
  const Scalar* base[2] = {nullptr, nullptr};
  Scalar factor[2] = {0, 0};
};

template <int R, class Scalar>
void run_first_stage(const RowSource<Scalar>& source, Complex<Vector<Scalar>>* z, int64_t stride,
                     const Vector<Scalar>* w, Prefetch& prefetch) {
  constexpr int L = kLanes<Scalar>;
  const Scalar *re = source.row[0], *im = source.row[1];
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

template <int R, bool kBase, class Scalar>
void run_last_stage(const Complex<Vector<Scalar>>* z, const RowSink<Scalar>& sink, int64_t stride,
                    const Vector<Scalar>* w, Prefetch& prefetch) {
  constexpr int L = kLanes<Scalar>;
  const RowSink<Scalar> to = sink;
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

// Stage `stage` of `blocks` blocks of z on the way in; the first stage takes the rows that `sources` (may be null)
// names.
template <class Scalar>
void walk_stage_in(const Transform<Scalar>& transform, size_t stage, Complex<Vector<Scalar>>* z, int64_t offset,
                   int64_t blocks, const RowSource<Scalar>* sources, Prefetch& prefetch) {
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

template <class Scalar>
void walk_stage_out(const Transform<Scalar>& transform, size_t stage, Complex<Vector<Scalar>>* z, int64_t offset,
                    int64_t blocks, const RowSink<Scalar>* sinks, Prefetch& prefetch) {
  if (stage > 0 || sinks == nullptr) return run_stage<true>(transform, stage, z + offset, blocks, prefetch);
  const Stage& last = transform.plan().stages[0];
  const int64_t stride = last.stride / kLanes<Scalar>;
  for (int64_t pair = 0; pair < blocks; ++pair, z += transform.vectors()) {
    const RowSink<Scalar>& sink = sinks[pair];
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

// ---- tiles ----------------------------------------------------------------------------------------------------------

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

// ---- works ----------------------------------------------------------------------------------------------------------

// Rows to their spectrum, written tile by tile in the order of the walk.
template <class Scalar>
struct ToSpectrum {
  using C = Complex<Vector<Scalar>>;
  const Transform<Scalar>& transform;
  C* z;
  const RowSource<Scalar>* sources;
  C* spectrum;
  Prefetch& prefetch;

  void stage_in(size_t stage, int64_t offset, int64_t blocks) {
    walk_stage_in(transform, stage, z, offset, blocks, sources, prefetch);
  }
  void stage_out(size_t, int64_t, int64_t) {}
  void middle(int64_t offset, int64_t count) {
    const auto tile = [&](C* row) SURM_INLINE_LAMBDA {
      prefetch.step();
      tile_forward<Scalar>(row, spectrum);
      spectrum += kTile<Scalar>;
    };
    for_each_tile<Scalar>(count, tile, z + offset);
  }
};

// The way back.
template <class Scalar>
struct FromSpectrum {
  using C = Complex<Vector<Scalar>>;
  const Transform<Scalar>& transform;
  C* z;
  const RowSink<Scalar>* sinks;
  const C* spectrum;
  Prefetch& prefetch;

  void stage_in(size_t, int64_t, int64_t) {}
  void stage_out(size_t stage, int64_t offset, int64_t blocks) {
    walk_stage_out(transform, stage, z, offset, blocks, sinks, prefetch);
  }
  void middle(int64_t offset, int64_t count) {
    const auto tile = [&](C* row) SURM_INLINE_LAMBDA {
      prefetch.step();
      tile_inverse<Scalar>(spectrum, row);
      spectrum += kTile<Scalar>;
    };
    for_each_tile<Scalar>(count, tile, z + offset);
  }
};

// Rows times a spectrum and back, in place: the spectrum of the rows only ever exists in registers.
template <class Scalar>
struct Product {
  using C = Complex<Vector<Scalar>>;
  const Transform<Scalar>& transform;
  C* z;
  const RowSource<Scalar>* sources;
  const RowSink<Scalar>* sinks;
  const C* factor;
  Prefetch& prefetch;

  void stage_in(size_t stage, int64_t offset, int64_t blocks) {
    walk_stage_in(transform, stage, z, offset, blocks, sources, prefetch);
  }
  void stage_out(size_t stage, int64_t offset, int64_t blocks) {
    walk_stage_out(transform, stage, z, offset, blocks, sinks, prefetch);
  }
  void middle(int64_t offset, int64_t count) {
    constexpr int T = kTile<Scalar>;
    const auto tile = [&](C* row) SURM_INLINE_LAMBDA {
      prefetch.step();
      C u[T];
      tile_forward<Scalar>(row, u);
      SURM_UNROLL
      for (int k = 0; k < T; ++k) u[k] = multiply<false>(u[k], factor[k].re, factor[k].im);
      tile_inverse<Scalar>(u, row);
      factor += T;
    };
    for_each_tile<Scalar>(count, tile, z + offset);
  }
};

// Both gradients in one walk: sum += ĝ ∘ conj(x̂), and g <- back(ĝ ∘ factor) if a factor is given.
template <class Scalar>
struct ProductPullback {
  using C = Complex<Vector<Scalar>>;
  const Transform<Scalar>& transform;
  C* g;
  C* x;
  const RowSource<Scalar>*g_sources, *x_sources;
  const RowSink<Scalar>* g_sinks;
  const C* factor;
  C* sum;
  Prefetch& prefetch;

  void stage_in(size_t stage, int64_t offset, int64_t blocks) {
    walk_stage_in(transform, stage, x, offset, blocks, x_sources, prefetch);
    walk_stage_in(transform, stage, g, offset, blocks, g_sources, prefetch);
  }
  void stage_out(size_t stage, int64_t offset, int64_t blocks) {
    if (factor != nullptr) walk_stage_out(transform, stage, g, offset, blocks, g_sinks, prefetch);
  }
  void middle(int64_t offset, int64_t count) {
    constexpr int T = kTile<Scalar>;
    const auto tile = [&](C* g_row, C* x_row) SURM_INLINE_LAMBDA {
      prefetch.step();
      C x_hat[T], u[T];
      tile_forward<Scalar>(x_row, x_hat);
      tile_forward<Scalar>(g_row, u);
      SURM_UNROLL
      for (int k = 0; k < T; ++k) sum[k] = sum[k] + multiply<true>(u[k], x_hat[k].re, x_hat[k].im);
      sum += T;
      if (factor == nullptr) return;
      SURM_UNROLL
      for (int k = 0; k < T; ++k) u[k] = multiply<false>(u[k], factor[k].re, factor[k].im);
      tile_inverse<Scalar>(u, g_row);
      factor += T;
    };
    for_each_tile<Scalar>(count, tile, g + offset, x + offset);
  }
};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
