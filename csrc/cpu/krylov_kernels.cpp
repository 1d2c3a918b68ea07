// Block Krylov product and its gradients on the CPU, compiled once per instruction set.
//
// A unit of work is a batch of packed rows (two tokens each). One input and one output block: the spectrum stays in
// registers between the ways in and out (transform.h). More blocks: every input block is transformed once, products are
// summed in the frequency domain, and one inverse runs per output block.
#include <mutex>
#include <unordered_map>

#include "krylov.h"
#include "rows.h"
#include "transform.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

template <class Scalar>
std::shared_ptr<const Transform<Scalar>> transform_of(int64_t size) {
  constexpr size_t kMostKept = 64;
  static std::mutex mutex;
  static std::unordered_map<int64_t, std::shared_ptr<const Transform<Scalar>>> kept;
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = kept.find(size);
  if (found == kept.end()) {
    if (kept.size() >= kMostKept) kept.clear();
    found = kept.emplace(size, std::make_shared<const Transform<Scalar>>(size)).first;
  }
  return found->second;
}

// Working memory that a thread keeps between calls: fresh pages cost more than the transforms that use them.
class Scratch {
 public:
  template <class Element>
  struct Request {
    Element** where;
    int64_t count;
  };
  template <class... Elements>
  static void take(Request<Elements>... requests) {
    thread_local Buffer<char> memory;
    thread_local size_t size = 0;
    const size_t bytes = (padded(requests) + ...);
    if (bytes > size) {
      memory = Buffer<char>(bytes);
      size = bytes;
    }
    char* at = memory.data();
    ((*requests.where = reinterpret_cast<Elements*>(at), at += padded(requests)), ...);
  }

 private:
  // Half a page more between two arrays keeps them from colliding in L1.
  template <class Element>
  static size_t padded(const Request<Element>& request) {
    return (request.count * sizeof(Element) + 63) / 64 * 64 + 1088;
  }
};

template <class Storage>
class KrylovProduct {
  using Scalar = ComputeType<Storage>;
  using V = Vector<Scalar>;
  using C = Complex<V>;
  static constexpr int L = kLanes<Scalar>;
  static constexpr bool kStoredAsComputed = std::is_same<Storage, Scalar>::value;

 public:
  KrylovProduct(const KrylovShape& shape, const ParallelFor& parallel)
      : shape_(shape),
        parallel_(parallel),
        transform_(transform_of<Scalar>(shape.block)),
        t_(*transform_),
        rows_(shape.transposed ? shape.in_blocks : shape.out_blocks),
        columns_(shape.transposed ? shape.out_blocks : shape.in_blocks),
        twisted_(shape.sign < 0 && !t_.plan().embedded()),
        direct_(!twisted_ && !t_.plan().embedded() && !t_.plan().stages.empty() &&
                has_butterfly(t_.plan().stages[0].radix)),
        pairs_(single() ? pairs_for_single() : t_.pairs_to_fill_tiles()),
        spectrum_(t_.spectrum_vectors(pairs_)),
        batches_(single() ? 1 : batches_for_blocks()),
        unit_tokens_(2 * pairs_ * batches_),
        units_((shape.tokens + unit_tokens_ - 1) / unit_tokens_),
        zeros_(shape.block) {
    std::memset(static_cast<void*>(zeros_.data()), 0, shape.block * sizeof(Storage));
  }

  void matmul(ConstRows x, const Storage* v, ConstRows base, double scale, Storage* y) {
    const Buffer<C> factors = parameter_spectra(v, shape_.transposed, rows_, columns_);
    parallel_(shape_.groups * units_, grain(), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t group = item / units_;
        const C* group_factors = factors.data() + group * rows_ * columns_ * spectrum_;
        const Rows in = rows_of(x, group), add = rows_of(base, group);
        Storage* out = y + group * shape_.tokens * rows_ * shape_.block;
        if (single()) {
          single_matmul(item % units_, in, group_factors, add, static_cast<Scalar>(scale), out);
        } else {
          block_matmul(item % units_, in, group_factors, add, static_cast<Scalar>(scale), out);
        }
      }
    });
  }

  void backward(ConstRows g, ConstRows x, const Storage* v, double scale, Storage* x_gradient, Storage* v_gradient) {
    Buffer<C> factors;
    if (x_gradient != nullptr) factors = parameter_spectra(v, !shape_.transposed, columns_, rows_);
    const int64_t blocks = rows_ * columns_, chunks = chunk_count();
    const Buffer<C> sums(shape_.groups * chunks * blocks * spectrum_);
    const Buffer<char> poisoned(shape_.groups * chunks);
    parallel_(shape_.groups * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t group = item / chunks, chunk = item % chunks;
        C* chunk_sums = sums.data() + item * blocks * spectrum_;
        std::memset(static_cast<void*>(chunk_sums), 0, blocks * spectrum_ * sizeof(C));
        poisoned[item] = 0;
        Pullback pullback{rows_of(g, group),          rows_of(x, group), nullptr,        nullptr,
                          static_cast<Scalar>(scale), chunk_sums,        &poisoned[item]};
        if (x_gradient != nullptr) {
          pullback.factors = factors.data() + group * blocks * spectrum_;
          pullback.x_gradient = x_gradient + group * shape_.tokens * columns_ * shape_.block;
        }
        for (int64_t unit = units_ * chunk / chunks; unit < units_ * (chunk + 1) / chunks; ++unit) {
          single() ? single_backward(unit, pullback) : block_backward(unit, pullback);
        }
      }
    });
    finish_parameter_gradient(sums.data(), poisoned.data(), chunks, scale, v_gradient);
  }

 private:
  struct Rows {
    const Storage* data;
    int64_t stride;
    const Storage* at(int64_t token) const { return data + token * stride; }
    explicit operator bool() const { return data != nullptr; }
  };

  struct Pullback {
    Rows g, x;
    const C* factors;     // null: no x_gradient wanted
    Storage* x_gradient;  // of this group
    Scalar scale;
    C* sums;  // spectra of the parameter gradient, (rows, columns, spectrum)
    char* poisoned;
  };

  // A token's rows in a unit and their scales; rows past the last token read as zeros and are not written.
  struct Pair {
    int64_t token;
    const Storage* row[2];
    RowScale<Scalar> scale[2];
  };

  bool single() const { return rows_ * columns_ == 1; }

  // Short rows are walked together, so that what a walk costs beside its arithmetic is shared.
  static constexpr int kMostPairs = 32;
  static constexpr int64_t kVectorsWorthAWalk = 32;

  int pairs_for_single() const {
    int pairs = t_.pairs_to_fill_tiles();
    while (pairs * t_.vectors() < kVectorsWorthAWalk && 2 * pairs < shape_.tokens && 2 * pairs <= kMostPairs)
      pairs *= 2;
    return pairs;
  }

  // The more batches, the fewer loads of spectra of v a product needs; their own spectra have to stay in L2.
  int batches_for_blocks() const {
    const int64_t bytes = (rows_ + columns_) * spectrum_ * static_cast<int64_t>(sizeof(C));
    for (int batches = 8; batches > 1; batches /= 2) {
      if (batches * bytes <= 1024 * 1024 && batches * pairs_ <= shape_.tokens) return batches;
    }
    return 1;
  }

  // Batches that one walk takes: tiles must not reach from one into the next, and more than a walk is worth only costs
  // cache.
  int batches_in_walk() const {
    const int64_t vectors = pairs_ * t_.vectors();
    int batches = 1;
    while (vectors % kTile<Scalar> == 0 && batches < batches_ && batches * vectors < kVectorsWorthAWalk) batches *= 2;
    return batches;
  }

  int64_t grain() const {
    constexpr int64_t kValuesWorthAThread = 16 * 1024;
    const int64_t values = unit_tokens_ * shape_.block * std::max(rows_, columns_);
    return std::max<int64_t>(1, kValuesWorthAThread / std::max<int64_t>(values, 1));
  }

  // A fixed number of chunks for a shape, whatever the threads, so that sums always run in the same order.
  int64_t chunk_count() const {
    constexpr int64_t kMostChunks = 128, kTokensInChunk = 64, kBytes = 4 << 20;
    const int64_t bytes = rows_ * columns_ * spectrum_ * static_cast<int64_t>(sizeof(C));
    const int64_t affordable = std::max<int64_t>(4, kBytes / bytes);
    const int64_t wanted =
        std::min({units_, kMostChunks, affordable, (shape_.tokens + kTokensInChunk - 1) / kTokensInChunk});
    return std::max<int64_t>(1, wanted);
  }

  static Rows rows_of(const ConstRows& rows, int64_t group) {
    if (rows.data == nullptr) return {nullptr, 0};
    return {static_cast<const Storage*>(rows.data) + group * rows.group_stride, rows.row_stride};
  }

  // ---- parameters
  // -----------------------------------------------------------------------------------------------------

  // v' with W(v)ᵀ = W(v'): element j of v' is element source(j) of v, times f unless j = 0.
  Scalar parameter(const Scalar* v, int64_t j, bool reversed) const {
    if (!reversed || j == 0) return v[j];
    return shape_.sign * v[shape_.block - j];
  }

  static void widen(const Storage* from, int64_t n, Scalar* to) {
    int64_t j = 0;
    for (; j + L <= n; j += L) store_vector<Scalar>(to + j, load_vector(from + j));
    if (j < n) store_partial<Scalar>(to + j, load_partial(from + j, static_cast<int>(n - j)), static_cast<int>(n - j));
  }

  // The first column of the N × N circulant that acts as the f-circulant on the first n values; `wide` has N values.
  void embed(const Scalar* v, bool reversed, Scalar* wide) const {
    const int64_t n = shape_.block, N = t_.plan().length;
    if (N != n) std::fill(wide, wide + N, Scalar{0});
    for (int64_t j = 0; j < n; ++j) wide[j] = parameter(v, j, reversed);
    for (int64_t k = 1; N != n && k < n; ++k) wide[N - k] = shape_.sign * parameter(v, n - k, reversed);
  }

  // Spectra of all blocks of a product with `out` × `in` blocks, divided by N, once for each pair of a batch.
  Buffer<C> parameter_spectra(const Storage* v, bool reversed, int64_t out, int64_t in) const {
    const int64_t n = shape_.block, vectors = t_.vectors(), count = shape_.groups * out * in;
    Buffer<C> spectra(count * spectrum_);
    const V inverse_length = V{} + static_cast<Scalar>(1) / static_cast<Scalar>(t_.plan().length);
    parallel_(count, std::max<int64_t>(1, 16 * 1024 / (pairs_ * t_.plan().length)), [&](int64_t begin, int64_t end) {
      C* z;
      Scalar *narrow, *wide;
      Scratch::take(Scratch::Request<C>{&z, pairs_ * vectors}, Scratch::Request<Scalar>{&narrow, n},
                    Scratch::Request<Scalar>{&wide, t_.plan().length});
      for (int64_t item = begin; item < end; ++item) {
        const int64_t group = item / (out * in), i = item / in % out, j = item % in;
        const int64_t block = reversed ? j * out + i : i * in + j;
        widen(v + (group * out * in + block) * n, n, narrow);
        embed(narrow, reversed, wide);
        for (int64_t k = 0; k < vectors; ++k) {
          const V value = load_as<V>(wide + k * L) * inverse_length;
          z[k] = twisted_ ? C{value * t_.twist()[2 * k], value * t_.twist()[2 * k + 1]} : C{value, V{}};
        }
        for (int pair = 1; pair < pairs_; ++pair)
          std::memcpy(static_cast<void*>(z + pair * vectors), z, vectors * sizeof(C));
        Prefetch nothing;
        ToSpectrum<Scalar> work{t_, z, nullptr, spectra.data() + item * spectrum_, nothing};
        descend(t_, work, 0, 0, pairs_);
      }
    });
    return spectra;
  }

  // v̄ from the chunks' spectra: a fixed tree of sums, one inverse transform a block, and what embed() did undone.
  void finish_parameter_gradient(C* sums, const char* poisoned, int64_t chunks, double scale,
                                 Storage* v_gradient) const {
    const int64_t n = shape_.block, N = t_.plan().length, blocks = rows_ * columns_, vectors = t_.vectors();
    parallel_(shape_.groups * blocks, std::max<int64_t>(1, 16 * 1024 / (chunks * spectrum_ * L)),
              [&](int64_t begin, int64_t end) {
                C* z;
                Scalar *wide, *narrow;
                Scratch::take(Scratch::Request<C>{&z, pairs_ * vectors}, Scratch::Request<Scalar>{&wide, N},
                              Scratch::Request<Scalar>{&narrow, n + L});
                for (int64_t item = begin; item < end; ++item) {
                  const int64_t group = item / blocks, i = item / columns_ % rows_, j = item % columns_;
                  C* spectrum = sums + (group * chunks * blocks + item % blocks) * spectrum_;
                  bool finite = true;
                  for (int64_t chunk = 0; chunk < chunks; ++chunk) finite = finite && !poisoned[group * chunks + chunk];
                  add_chunks(spectrum, chunks, blocks * spectrum_);
                  Prefetch nothing;
                  FromSpectrum<Scalar> work{t_, z, nullptr, spectrum, nothing};
                  descend(t_, work, 0, 0, pairs_);
                  gather_gradient(z, static_cast<Scalar>(scale / static_cast<double>(N)), wide);
                  unembed(wide, finite, narrow);
                  const int64_t block = shape_.transposed ? j * rows_ + i : i * columns_ + j;
                  Storage* out = v_gradient + (group * blocks + block) * n;
                  for (int64_t k = 0; k < n; k += L) {
                    store_partial(out + k, load_as<V>(narrow + k), static_cast<int>(std::min<int64_t>(L, n - k)));
                  }
                }
              });
  }

  void add_chunks(C* first, int64_t chunks, int64_t distance) const {
    for (int64_t step = 1; step < chunks; step *= 2) {
      for (int64_t chunk = 0; chunk + step < chunks; chunk += 2 * step) {
        C* to = first + chunk * distance;
        const C* from = first + (chunk + step) * distance;
        for (int64_t k = 0; k < spectrum_; ++k) to[k] = to[k] + from[k];
      }
    }
  }

  void gather_gradient(const C* z, Scalar factor, Scalar* wide) const {
    const int64_t vectors = t_.vectors();
    for (int64_t k = 0; k < vectors; ++k) {
      C total = z[k];
      for (int pair = 1; pair < pairs_; ++pair) total = total + z[pair * vectors + k];
      if (twisted_) total = multiply<true>(total, t_.twist()[2 * k], t_.twist()[2 * k + 1]);
      store_vector<Scalar>(wide + k * L, total.re * factor);
    }
  }

  void unembed(const Scalar* wide, bool finite, Scalar* v) const {
    const int64_t n = shape_.block, N = t_.plan().length;
    for (int64_t j = 0; j < n; ++j) {
      Scalar value = wide[j];
      if (N != n && j > 0) value += shape_.sign * wide[N - n + j];
      const bool mirrored = shape_.transposed && j > 0;
      v[mirrored ? n - j : j] =
          finite ? (mirrored ? shape_.sign * value : value) : std::numeric_limits<Scalar>::quiet_NaN();
    }
  }

  // ---- rows
  // -----------------------------------------------------------------------------------------------------------

  // The pairs of a unit, with the scales of their rows.
  void find_pairs(const Rows& rows, int64_t unit, int64_t width, Pair* pairs) const {
    for (int64_t k = 0; k < unit_tokens_; ++k) {
      const int64_t token = unit * unit_tokens_ + k;
      Pair& pair = pairs[k / 2];
      if (k % 2 == 0) pair.token = token;
      const bool there = token < shape_.tokens;
      pair.row[k % 2] = there ? rows.at(token) : nullptr;
      pair.scale[k % 2] = there ? scale_of_row(rows.at(token), width) : RowScale<Scalar>{};
    }
  }

  // The rows of a unit, if they lie one behind the other.
  void prefetch_rows(Prefetch& prefetch, const Rows& rows, int64_t unit, int64_t width) const {
    const int64_t first = unit * unit_tokens_, tokens = std::min(unit_tokens_, shape_.tokens - first);
    if (rows.stride != width || tokens <= 0) return;
    prefetch.add(rows.at(first), tokens * width * sizeof(Storage));
  }

  // The rows of `count` pairs at `offset`, for the first stage to read, or already in z where it cannot.
  void load(const Pair* pairs, int count, int64_t offset, C* z, RowSource<Scalar>* sources) const {
    for (int p = 0; p < count; ++p, z += t_.vectors()) {
      const RowScale<Scalar>* scale = pairs[p].scale;
      const auto row = [&](int i) {
        return pairs[p].row[i] != nullptr && scale[i].finite ? pairs[p].row[i] + offset : zeros_.data();
      };
      sources[p] = {};
      if constexpr (kStoredAsComputed) {
        if (direct_) {
          sources[p] = {{row(0), row(1)}, {scale[0].in, scale[1].in}};
          continue;
        }
      }
      load_pair(t_, row(0), row(1), scale[0].in, scale[1].in, twisted_, z);
    }
  }

  // Where block `block` of the output goes; `width` is the number of values in a row of `out`.
  struct Destination {
    int64_t block, width;
    Scalar scale;
    const Rows& base;
    Storage* out;
  };

  // Lets the last stage write the rows of `count` pairs where it can.
  void aim(const Pair* pairs, int count, const Destination& to, RowSink<Scalar>* sinks) const {
    std::fill(sinks, sinks + count, RowSink<Scalar>{});
    if constexpr (kStoredAsComputed) {
      for (int p = 0; direct_ && p < count; ++p) {
        const Pair& pair = pairs[p];
        if (pair.token + 1 >= shape_.tokens || !pair.scale[0].regular() || !pair.scale[1].regular()) continue;
        for (int i = 0; i < 2; ++i) {
          const int64_t offset = to.block * shape_.block;
          sinks[p].row[i] = to.out + (pair.token + i) * to.width + offset;
          sinks[p].base[i] = to.base ? to.base.at(pair.token + i) + offset : nullptr;
          sinks[p].factor[i] = to.scale * pair.scale[i].out;
        }
      }
    }
  }

  // Writes the rows that the last stage left in z.
  void store(const Pair* pairs, int count, const Destination& to, const C* z, const RowSink<Scalar>* sinks) const {
    for (int p = 0; p < count; ++p) {
      if (sinks[p].row[0] == nullptr) store_pair(pairs[p], to, z + p * t_.vectors());
    }
  }

  void store_pair(const Pair& pair, const Destination& to, const C* z) const {
    const int64_t n = shape_.block, offset = to.block * n;
    for (int i = 0; i < 2; ++i) {
      const int64_t token = pair.token + i;
      if (token >= shape_.tokens) return;
      const RowScale<Scalar>& scale = pair.scale[i];
      const Storage* add = to.base ? to.base.at(token) + offset : nullptr;
      Storage* row = to.out + token * to.width + offset;
      if (!scale.regular()) {
        store_constant(n, scale.finite ? Scalar{0} : std::numeric_limits<Scalar>::quiet_NaN(), add, row);
      } else if (i == 0) {
        store_row<0>(t_, z, to.scale * scale.out, twisted_, add, row);
      } else {
        store_row<1>(t_, z, to.scale * scale.out, twisted_, add, row);
      }
    }
  }

  // g is brought to one and x takes what g lost, so that the product of the two keeps its size.
  void balance(Pair* g, Pair* x, char* poisoned) const {
    for (int64_t k = 0; k < unit_tokens_; ++k) {
      const RowScale<Scalar>& g_scale = g[k / 2].scale[k % 2];
      RowScale<Scalar>& x_scale = x[k / 2].scale[k % 2];
      if (!g_scale.finite || !x_scale.finite) *poisoned = 1;
      x_scale.in = g_scale.finite && x_scale.finite ? g_scale.out : Scalar{0};
    }
  }

  // ---- one block
  // ------------------------------------------------------------------------------------------------------

  void single_matmul(int64_t unit, const Rows& x, const C* factor, const Rows& base, Scalar scale, Storage* y) const {
    const int64_t n = shape_.block;
    C* z;
    Scratch::take(Scratch::Request<C>{&z, pairs_ * t_.vectors()});
    Pair pairs[kMostPairs];
    RowSource<Scalar> sources[kMostPairs];
    RowSink<Scalar> sinks[kMostPairs];
    const Destination to{0, n, scale, base, y};
    find_pairs(x, unit, n, pairs);
    load(pairs, pairs_, 0, z, sources);
    aim(pairs, pairs_, to, sinks);
    Prefetch prefetch;
    prefetch_rows(prefetch, Rows{y, n}, unit, n);
    prefetch_rows(prefetch, x, unit + 1, n);
    Product<Scalar> work{t_, z, sources, sinks, factor, prefetch};
    descend(t_, work, 0, 0, pairs_);
    store(pairs, pairs_, to, z, sinks);
  }

  void single_backward(int64_t unit, const Pullback& pullback) const {
    const int64_t n = shape_.block;
    C *g_row, *x_row;
    Scratch::take(Scratch::Request<C>{&g_row, pairs_ * t_.vectors()},
                  Scratch::Request<C>{&x_row, pairs_ * t_.vectors()});
    Pair g[kMostPairs], x[kMostPairs];
    RowSource<Scalar> g_sources[kMostPairs], x_sources[kMostPairs];
    RowSink<Scalar> sinks[kMostPairs];
    const Rows no_base{nullptr, 0};
    const Destination to{0, n, pullback.scale, no_base, pullback.x_gradient};
    find_pairs(pullback.g, unit, n, g);
    find_pairs(pullback.x, unit, n, x);
    balance(g, x, pullback.poisoned);
    load(g, pairs_, 0, g_row, g_sources);
    load(x, pairs_, 0, x_row, x_sources);
    aim(g, pairs_, to, sinks);
    Prefetch prefetch;
    if (pullback.factors != nullptr) prefetch_rows(prefetch, Rows{pullback.x_gradient, n}, unit, n);
    prefetch_rows(prefetch, pullback.g, unit + 1, n);
    prefetch_rows(prefetch, pullback.x, unit + 1, n);
    ProductPullback<Scalar> work{t_,      g_row, x_row, g_sources, x_sources, sinks, pullback.factors, pullback.sums,
                                 prefetch};
    descend(t_, work, 0, 0, pairs_);
    if (pullback.factors != nullptr) store(g, pairs_, to, g_row, sinks);
  }

  // ---- blocks
  // ---------------------------------------------------------------------------------------------------------

  // Spectra of `blocks` blocks of the pairs of a unit, (blocks, batches, spectrum).
  void to_spectra(const Pair* pairs, int64_t blocks, Prefetch& prefetch, C* z, C* spectra) const {
    RowSource<Scalar> sources[kMostPairs];
    const int step = batches_in_walk(), count = step * pairs_;
    for (int64_t block = 0; block < blocks; ++block) {
      for (int batch = 0; batch < batches_; batch += step, spectra += step * spectrum_) {
        load(pairs + batch * pairs_, count, block * shape_.block, z, sources);
        ToSpectrum<Scalar> work{t_, z, sources, spectra, prefetch};
        descend(t_, work, 0, 0, count);
      }
    }
  }

  // total[batch] = Σ_k factor[k] ∘ in[k, batch].
  template <int kBatches>
  void sum_products(const C* factor, const C* in, int64_t count, C* total) const {
    for (int64_t s = 0; s < spectrum_; ++s) {
      C sum[kBatches] = {};
      for (int64_t k = 0; k < count; ++k) {
        const C f = factor[k * spectrum_ + s];
        SURM_UNROLL
        for (int b = 0; b < kBatches; ++b) {
          sum[b] = sum[b] + multiply<false>(in[(k * kBatches + b) * spectrum_ + s], f.re, f.im);
        }
      }
      SURM_UNROLL
      for (int b = 0; b < kBatches; ++b) total[b * spectrum_ + s] = sum[b];
    }
  }

  // Products of the spectra of a unit with `out` rows of factors, back to rows and stored.
  void from_spectra(const Pair* pairs, const C* factors, const C* in, int64_t in_blocks, int64_t out_blocks,
                    Scalar scale, const Rows& base, Prefetch& prefetch, C* z, C* total, Storage* out) const {
    const int step = batches_in_walk(), count = step * pairs_;
    for (int64_t block = 0; block < out_blocks; ++block) {
      const C* factor = factors + block * in_blocks * spectrum_;
      if (batches_ == 8) sum_products<8>(factor, in, in_blocks, total);
      if (batches_ == 4) sum_products<4>(factor, in, in_blocks, total);
      if (batches_ == 2) sum_products<2>(factor, in, in_blocks, total);
      if (batches_ == 1) sum_products<1>(factor, in, in_blocks, total);
      const Destination to{block, out_blocks * shape_.block, scale, base, out};
      for (int batch = 0; batch < batches_; batch += step) {
        RowSink<Scalar> sinks[kMostPairs];
        aim(pairs + batch * pairs_, count, to, sinks);
        FromSpectrum<Scalar> work{t_, z, sinks, total + batch * spectrum_, prefetch};
        descend(t_, work, 0, 0, count);
        store(pairs + batch * pairs_, count, to, z, sinks);
      }
    }
  }

  void block_matmul(int64_t unit, const Rows& x, const C* factors, const Rows& base, Scalar scale, Storage* y) const {
    const int64_t width = columns_ * shape_.block;
    C *z, *in, *total;
    Pair* pairs;
    Scratch::take(Scratch::Request<C>{&z, batches_ * pairs_ * t_.vectors()},
                  Scratch::Request<C>{&in, columns_ * batches_ * spectrum_},
                  Scratch::Request<C>{&total, batches_ * spectrum_}, Scratch::Request<Pair>{&pairs, batches_ * pairs_});
    find_pairs(x, unit, width, pairs);
    Prefetch prefetch;
    prefetch_rows(prefetch, Rows{y, rows_ * shape_.block}, unit, rows_ * shape_.block);
    prefetch_rows(prefetch, x, unit + 1, width);
    to_spectra(pairs, columns_, prefetch, z, in);
    from_spectra(pairs, factors, in, columns_, rows_, scale, base, prefetch, z, total, y);
  }

  // sums[i, j] += Σ_batch ĝ[i, batch] ∘ conj(x̂[j, batch]) for a patch of kRows × kColumns blocks.
  template <int kRows, int kColumns>
  void add_products(const C* g, const C* x, int64_t i, int64_t j, C* sums) const {
    for (int64_t s = 0; s < spectrum_; ++s) {
      C sum[kRows][kColumns];
      SURM_UNROLL
      for (int a = 0; a < kRows; ++a) {
        SURM_UNROLL
        for (int b = 0; b < kColumns; ++b) sum[a][b] = sums[((i + a) * columns_ + j + b) * spectrum_ + s];
      }
      for (int64_t batch = 0; batch < batches_; ++batch) {
        SURM_UNROLL
        for (int a = 0; a < kRows; ++a) {
          const C g_hat = g[((i + a) * batches_ + batch) * spectrum_ + s];
          SURM_UNROLL
          for (int b = 0; b < kColumns; ++b) {
            const C x_hat = x[((j + b) * batches_ + batch) * spectrum_ + s];
            sum[a][b] = sum[a][b] + multiply<true>(g_hat, x_hat.re, x_hat.im);
          }
        }
      }
      SURM_UNROLL
      for (int a = 0; a < kRows; ++a) {
        SURM_UNROLL
        for (int b = 0; b < kColumns; ++b) sums[((i + a) * columns_ + j + b) * spectrum_ + s] = sum[a][b];
      }
    }
  }

  void add_all_products(const C* g, const C* x, C* sums) const {
    for (int64_t i = 0; i < rows_; i += 2) {
      for (int64_t j = 0; j < columns_; j += 2) {
        const bool two_rows = i + 1 < rows_, two_columns = j + 1 < columns_;
        if (two_rows && two_columns) add_products<2, 2>(g, x, i, j, sums);
        if (two_rows && !two_columns) add_products<2, 1>(g, x, i, j, sums);
        if (!two_rows && two_columns) add_products<1, 2>(g, x, i, j, sums);
        if (!two_rows && !two_columns) add_products<1, 1>(g, x, i, j, sums);
      }
    }
  }

  void block_backward(int64_t unit, const Pullback& pullback) const {
    C *z, *g_hat, *x_hat, *total;
    Pair *g, *x;
    Scratch::take(Scratch::Request<C>{&z, batches_ * pairs_ * t_.vectors()},
                  Scratch::Request<C>{&g_hat, rows_ * batches_ * spectrum_},
                  Scratch::Request<C>{&x_hat, columns_ * batches_ * spectrum_},
                  Scratch::Request<C>{&total, batches_ * spectrum_}, Scratch::Request<Pair>{&g, batches_ * pairs_},
                  Scratch::Request<Pair>{&x, batches_ * pairs_});
    find_pairs(pullback.g, unit, rows_ * shape_.block, g);
    find_pairs(pullback.x, unit, columns_ * shape_.block, x);
    balance(g, x, pullback.poisoned);
    Prefetch prefetch;
    prefetch_rows(prefetch, pullback.g, unit + 1, rows_ * shape_.block);
    prefetch_rows(prefetch, pullback.x, unit + 1, columns_ * shape_.block);
    to_spectra(g, rows_, prefetch, z, g_hat);
    to_spectra(x, columns_, prefetch, z, x_hat);
    add_all_products(g_hat, x_hat, pullback.sums);
    if (pullback.factors == nullptr) return;
    from_spectra(g, pullback.factors, g_hat, rows_, columns_, pullback.scale, Rows{nullptr, 0}, prefetch, z, total,
                 pullback.x_gradient);
  }

  const KrylovShape& shape_;
  const ParallelFor& parallel_;
  std::shared_ptr<const Transform<Scalar>> transform_;
  const Transform<Scalar>& t_;
  const int64_t rows_, columns_;  // blocks of the product that comes out of and goes into it
  const bool twisted_;            // multiply by exp(iπ j/n) to make a skew-circulant product a circulant one
  const bool direct_;             // the first stage can read rows and the last can write them
  const int pairs_;               // packed rows in a batch; each has its own copy of the spectrum of v
  const int64_t spectrum_;        // complex vectors in the spectrum of a batch
  const int batches_;             // batches in a unit, which share one copy of the spectra of v
  const int64_t unit_tokens_;
  const int64_t units_;
  const Buffer<Storage> zeros_;  // a row of zeros
};

void matmul(StorageType type, const KrylovShape& shape, ConstRows x, const void* v, ConstRows base, double scale,
            void* y, const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    KrylovProduct<Storage>(shape, parallel)
        .matmul(x, static_cast<const Storage*>(v), base, scale, static_cast<Storage*>(y));
  });
}

void backward(StorageType type, const KrylovShape& shape, ConstRows g, ConstRows x, const void* v, double scale,
              void* x_gradient, void* v_gradient, const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    KrylovProduct<Storage>(shape, parallel)
        .backward(g, x, static_cast<const Storage*>(v), scale, static_cast<Storage*>(x_gradient),
                  static_cast<Storage*>(v_gradient));
  });
}

}  // namespace

extern const KrylovKernels krylov_kernels;
const KrylovKernels krylov_kernels{matmul, backward};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
