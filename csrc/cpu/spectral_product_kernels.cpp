// The machine of spectral_product.h: units of work, threads, sums.
//
// With one block the spectrum of the tokens stays in registers between the ways in and out (works.h). With more, every
// input block is transformed once, products are summed in the frequency domain, and one inverse runs per output block.
#include "batches.h"
#include "chunks.h"
#include "parameter_transform.h"
#include "spectral_product.h"
#include "works.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

template <class Storage>
class SpectralProduct<Storage>::Machine {
  using Scalar = ComputeType<Storage>;
  using V = Vector<Scalar>;
  using C = Complex<V>;
  static constexpr int L = kLanes<Scalar>;

 public:
  Machine(const SpectralShape& shape, const Transform<Scalar>& transform, const ParallelFor& parallel)
      : shape_(shape),
        t_(transform),
        parallel_(parallel),
        pairs_(single() ? pairs_to_walk(t_, shape.tokens) : t_.pairs_to_fill_tiles()),
        spectrum_(t_.spectrum_vectors(pairs_)),
        batches_(single() ? 1 : batches_for_blocks()),
        unit_pairs_(pairs_ * batches_),
        units_((shape.tokens + 2 * unit_pairs_ - 1) / (2 * unit_pairs_)),
        tokens_(transform, std::max(shape.in_size, shape.out_size), shape.twisted),
        parameters_(transform, transform.pairs_to_fill_tiles(), shape.twisted),
        gradients_(transform, pairs_, shape.twisted) {}

  int64_t parameter_spectrum() const { return t_.spectrum_vectors(t_.pairs_to_fill_tiles()); }

  Buffer<C> parameter_spectra(int64_t count, const Fill& fill) const {
    const int64_t spectrum = parameter_spectrum();
    Buffer<C> spectra(count * spectrum);
    parallel_(count, grain_of_walks(t_.pairs_to_fill_tiles() * t_.plan().length), [&](int64_t begin, int64_t end) {
      C* z;
      Scalar* values;
      Scratch::take(Scratch::Request<C>{&z, parameters_.vectors()},
                    Scratch::Request<Scalar>{&values, t_.plan().length});
      for (int64_t item = begin; item < end; ++item) {
        fill(item, values);
        parameters_.forward(values, z, spectra.data() + item * spectrum);
      }
    });
    return spectra;
  }

  void matmul(const ConstRows& x, const C* spectra, const ConstRows& base, double scale, Storage* y) const {
    Buffer<C> copies;
    const C* factors = for_all_pairs(spectra, copies);
    parallel_(shape_.groups * units_, grain_of_walks(2 * unit_pairs_ * std::max(shape_.in_width(), shape_.out_width())),
              [&](int64_t begin, int64_t end) {
                for (int64_t item = begin; item < end; ++item) {
                  const int64_t group = item / units_;
                  const Destination<Storage> to{0,
                                                shape_.out_size,
                                                shape_.out_width(),
                                                static_cast<Scalar>(scale),
                                                rows_of<Storage>(base, group),
                                                y + group * shape_.tokens * shape_.out_width()};
                  const C* group_factors = factors + group * shape_.blocks_of_group() * spectrum_;
                  const Rows<Storage> rows = rows_of<Storage>(x, group);
                  single() ? single_matmul(item % units_, rows, group_factors, to)
                           : block_matmul(item % units_, rows, group_factors, to);
                }
              });
  }

  void backward(const ConstRows& g, const ConstRows& x, const C* spectra, double scale, Storage* x_gradient,
                const Take& take) const {
    Buffer<C> copies;
    const C* factors = x_gradient != nullptr ? for_all_pairs(spectra, copies) : nullptr;
    const int64_t sums_of_chunk = shape_.blocks_of_group() * spectrum_;
    const int64_t chunks = chunks_of_sum(units_, shape_.tokens, sums_of_chunk * static_cast<int64_t>(sizeof(C)));
    const Buffer<C> sums(shape_.groups * chunks * sums_of_chunk);
    const Buffer<char> poisoned(shape_.groups * chunks);
    const int64_t values = shape_.tokens * (shape_.in_width() + shape_.out_width()) / chunks;
    parallel_(shape_.groups * chunks, grain_of_walks(values), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t group = item / chunks, chunk = item % chunks;
        Gradients gradients{rows_of<Storage>(g, group),
                            rows_of<Storage>(x, group),
                            nullptr,
                            {0, shape_.in_size, shape_.in_width(), static_cast<Scalar>(scale), {}, nullptr},
                            sums.data() + item * sums_of_chunk,
                            &poisoned[item]};
        if (x_gradient != nullptr) {
          gradients.factors = factors + group * sums_of_chunk;
          gradients.x_gradient.out = x_gradient + group * shape_.tokens * shape_.in_width();
        }
        std::fill(gradients.sums, gradients.sums + sums_of_chunk, C{V{}, V{}});
        poisoned[item] = 0;
        for (int64_t unit = units_ * chunk / chunks; unit < units_ * (chunk + 1) / chunks; ++unit) {
          single() ? single_backward(unit, gradients) : block_backward(unit, gradients);
        }
      }
    });
    finish_gradient(sums.data(), poisoned.data(), chunks, scale, take);
  }

 private:
  // One chunk's share of the gradients.
  struct Gradients {
    Rows<Storage> g, x;
    const C* factors;  // null: no x_gradient wanted
    Destination<Storage> x_gradient;
    C* sums;  // spectra of the parameter gradient, (rows, columns, spectrum)
    char* poisoned;
  };

  bool single() const { return shape_.blocks_of_group() == 1; }

  // The parameter spectra, repeated where a walk takes more pairs than they were made for; `copies` keeps these.
  const C* for_all_pairs(const C* spectra, Buffer<C>& copies) const {
    const int64_t count = shape_.all_blocks(), once = parameter_spectrum();
    if (once == spectrum_) return spectra;
    copies = Buffer<C>(count * spectrum_);
    for (int64_t at = 0; at < count * spectrum_; at += once) {
      std::copy_n(spectra + at / spectrum_ * once, once, copies.data() + at);
    }
    return copies.data();
  }

  // The more batches, the fewer loads of parameter spectra a product needs; the batches' own have to stay in L2.
  int batches_for_blocks() const {
    const int64_t bytes = (shape_.rows + shape_.columns) * spectrum_ * static_cast<int64_t>(sizeof(C));
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

  void find(const Rows<Storage>& rows, int64_t unit, int64_t width, Pair<Storage>* pairs) const {
    find_pairs(rows, 2 * unit * unit_pairs_, unit_pairs_, shape_.tokens, width, pairs);
  }

  // The rows of a unit, if they lie one behind the other.
  void prefetch_rows(Prefetch& prefetch, const Rows<Storage>& rows, int64_t unit, int64_t width) const {
    const int64_t first = 2 * unit * unit_pairs_;
    const int64_t count = std::min<int64_t>(2 * unit_pairs_, shape_.tokens - first);
    if (rows.stride == width && count > 0) prefetch.add(rows.at(first), count * width * sizeof(Storage));
  }

  // ---- one block ----

  void single_matmul(int64_t unit, const Rows<Storage>& x, const C* factor, const Destination<Storage>& to) const {
    C* z;
    Scratch::take(Scratch::Request<C>{&z, pairs_ * t_.vectors()});
    Pair<Storage> pairs[kMostPairs];
    RowSource<Storage> sources[kMostPairs];
    RowSink<Storage> sinks[kMostPairs];
    find(x, unit, shape_.in_size, pairs);
    tokens_.load(pairs, pairs_, 0, shape_.in_size, shape_.reflected, z, sources);
    tokens_.aim(pairs, pairs_, shape_.tokens, to, sinks);
    Prefetch prefetch;
    prefetch_rows(prefetch, {to.out, to.width}, unit, to.width);
    prefetch_rows(prefetch, x, unit + 1, shape_.in_size);
    Product<Storage> work{t_, z, sources, sinks, factor, shape_.reflected, prefetch};
    descend(t_, work, 0, 0, pairs_);
    tokens_.store(pairs, pairs_, shape_.tokens, to, z, sinks);
  }

  void single_backward(int64_t unit, const Gradients& gradients) const {
    C *g_row, *x_row;
    Scratch::take(Scratch::Request<C>{&g_row, pairs_ * t_.vectors()},
                  Scratch::Request<C>{&x_row, pairs_ * t_.vectors()});
    Pair<Storage> g[kMostPairs], x[kMostPairs];
    RowSource<Storage> g_sources[kMostPairs], x_sources[kMostPairs];
    RowSink<Storage> sinks[kMostPairs];
    const Destination<Storage>& to = gradients.x_gradient;
    find(gradients.g, unit, shape_.out_size, g);
    if (!find_partners(gradients.x, g, pairs_, shape_.tokens, x)) *gradients.poisoned = 1;
    tokens_.load(g, pairs_, 0, shape_.out_size, shape_.reflected, g_row, g_sources);
    tokens_.load(x, pairs_, 0, shape_.in_size, false, x_row, x_sources);
    tokens_.aim(g, pairs_, shape_.tokens, to, sinks);
    Prefetch prefetch;
    if (gradients.factors != nullptr) prefetch_rows(prefetch, {to.out, to.width}, unit, to.width);
    prefetch_rows(prefetch, gradients.g, unit + 1, shape_.out_size);
    prefetch_rows(prefetch, gradients.x, unit + 1, shape_.in_size);
    ProductPullback<Storage> work{
        t_, g_row, x_row, g_sources, x_sources, sinks, gradients.factors, gradients.sums, shape_.reflected, prefetch};
    descend(t_, work, 0, 0, pairs_);
    if (gradients.factors != nullptr) tokens_.store(g, pairs_, shape_.tokens, to, g_row, sinks);
  }

  // ---- blocks ----

  // Spectra of `blocks` blocks of `size` values of the pairs of a unit, (blocks, batches, spectrum).
  void to_spectra(const Pair<Storage>* pairs, int64_t blocks, int64_t size, bool conjugate, Prefetch& prefetch, C* z,
                  C* spectra) const {
    RowSource<Storage> sources[kMostPairs];
    const int step = batches_in_walk(), count = step * pairs_;
    for (int64_t block = 0; block < blocks; ++block) {
      for (int batch = 0; batch < batches_; batch += step, spectra += step * spectrum_) {
        tokens_.load(pairs + batch * pairs_, count, block * size, size, conjugate, z, sources);
        to_spectrum(t_, count, z, sources, prefetch, spectra);
      }
    }
  }

  // total[batch] = Σ_k factor[k] ∘ in[k, batch], with conj(in) if reflected.
  template <int kBatches, bool kReflected>
  void sum_products(const C* factor, const C* in, int64_t count, C* total) const {
    for (int64_t s = 0; s < spectrum_; ++s) {
      C sum[kBatches] = {};
      for (int64_t k = 0; k < count; ++k) {
        const C f = factor[k * spectrum_ + s];
        SURM_UNROLL
        for (int b = 0; b < kBatches; ++b) {
          const C value = in[(k * kBatches + b) * spectrum_ + s];
          sum[b] = sum[b] + multiply<kReflected>(f, value.re, value.im);
        }
      }
      SURM_UNROLL
      for (int b = 0; b < kBatches; ++b) total[b * spectrum_ + s] = sum[b];
    }
  }

  template <bool kReflected>
  void sum_products(const C* factor, const C* in, int64_t count, C* total) const {
    if (batches_ == 8) sum_products<8, kReflected>(factor, in, count, total);
    if (batches_ == 4) sum_products<4, kReflected>(factor, in, count, total);
    if (batches_ == 2) sum_products<2, kReflected>(factor, in, count, total);
    if (batches_ == 1) sum_products<1, kReflected>(factor, in, count, total);
  }

  // Products of the spectra of a unit with `blocks` rows of factors, back to rows and stored.
  void from_spectra(const Pair<Storage>* pairs, const C* factors, const C* in, int64_t in_blocks, int64_t blocks,
                    Destination<Storage> to, Prefetch& prefetch, C* z, C* total) const {
    const int step = batches_in_walk(), count = step * pairs_;
    for (to.block = 0; to.block < blocks; ++to.block, factors += in_blocks * spectrum_) {
      shape_.reflected ? sum_products<true>(factors, in, in_blocks, total)
                       : sum_products<false>(factors, in, in_blocks, total);
      for (int batch = 0; batch < batches_; batch += step) {
        RowSink<Storage> sinks[kMostPairs];
        tokens_.aim(pairs + batch * pairs_, count, shape_.tokens, to, sinks);
        from_spectrum(t_, count, total + batch * spectrum_, sinks, prefetch, z);
        tokens_.store(pairs + batch * pairs_, count, shape_.tokens, to, z, sinks);
      }
    }
  }

  void block_matmul(int64_t unit, const Rows<Storage>& x, const C* factors, const Destination<Storage>& to) const {
    C *z, *in, *total;
    Pair<Storage>* pairs;
    Scratch::take(Scratch::Request<C>{&z, unit_pairs_ * t_.vectors()},
                  Scratch::Request<C>{&in, shape_.columns * batches_ * spectrum_},
                  Scratch::Request<C>{&total, batches_ * spectrum_},
                  Scratch::Request<Pair<Storage>>{&pairs, unit_pairs_});
    find(x, unit, shape_.in_width(), pairs);
    Prefetch prefetch;
    prefetch_rows(prefetch, {to.out, to.width}, unit, to.width);
    prefetch_rows(prefetch, x, unit + 1, shape_.in_width());
    to_spectra(pairs, shape_.columns, shape_.in_size, shape_.reflected, prefetch, z, in);
    from_spectra(pairs, factors, in, shape_.columns, shape_.rows, to, prefetch, z, total);
  }

  // sums[i, j] += Σ_batch ĝ[i, batch] ∘ conj(x̂[j, batch]) for a patch of kRows × kColumns blocks, ∘ x̂ if reflected.
  template <int kRows, int kColumns, bool kReflected>
  void add_products(const C* g, const C* x, int64_t i, int64_t j, C* sums) const {
    const auto sum_at = [&](int a, int b) { return ((i + a) * shape_.columns + j + b) * spectrum_; };
    for (int64_t s = 0; s < spectrum_; ++s) {
      C sum[kRows][kColumns];
      SURM_UNROLL
      for (int a = 0; a < kRows; ++a) {
        SURM_UNROLL
        for (int b = 0; b < kColumns; ++b) sum[a][b] = sums[sum_at(a, b) + s];
      }
      for (int64_t batch = 0; batch < batches_; ++batch) {
        SURM_UNROLL
        for (int a = 0; a < kRows; ++a) {
          const C g_hat = g[((i + a) * batches_ + batch) * spectrum_ + s];
          SURM_UNROLL
          for (int b = 0; b < kColumns; ++b) {
            const C x_hat = x[((j + b) * batches_ + batch) * spectrum_ + s];
            sum[a][b] = sum[a][b] + multiply<!kReflected>(g_hat, x_hat.re, x_hat.im);
          }
        }
      }
      SURM_UNROLL
      for (int a = 0; a < kRows; ++a) {
        SURM_UNROLL
        for (int b = 0; b < kColumns; ++b) sums[sum_at(a, b) + s] = sum[a][b];
      }
    }
  }

  template <bool kReflected>
  void add_all_products(const C* g, const C* x, C* sums) const {
    for (int64_t i = 0; i < shape_.rows; i += 2) {
      for (int64_t j = 0; j < shape_.columns; j += 2) {
        const bool two_rows = i + 1 < shape_.rows, two_columns = j + 1 < shape_.columns;
        if (two_rows && two_columns) add_products<2, 2, kReflected>(g, x, i, j, sums);
        if (two_rows && !two_columns) add_products<2, 1, kReflected>(g, x, i, j, sums);
        if (!two_rows && two_columns) add_products<1, 2, kReflected>(g, x, i, j, sums);
        if (!two_rows && !two_columns) add_products<1, 1, kReflected>(g, x, i, j, sums);
      }
    }
  }

  void block_backward(int64_t unit, const Gradients& gradients) const {
    C *z, *g_hat, *x_hat, *total;
    Pair<Storage>*g, *x;
    Scratch::take(Scratch::Request<C>{&z, unit_pairs_ * t_.vectors()},
                  Scratch::Request<C>{&g_hat, shape_.rows * batches_ * spectrum_},
                  Scratch::Request<C>{&x_hat, shape_.columns * batches_ * spectrum_},
                  Scratch::Request<C>{&total, batches_ * spectrum_}, Scratch::Request<Pair<Storage>>{&g, unit_pairs_},
                  Scratch::Request<Pair<Storage>>{&x, unit_pairs_});
    find(gradients.g, unit, shape_.out_width(), g);
    if (!find_partners(gradients.x, g, unit_pairs_, shape_.tokens, x)) *gradients.poisoned = 1;
    const Destination<Storage>& to = gradients.x_gradient;
    Prefetch prefetch;
    if (gradients.factors != nullptr) prefetch_rows(prefetch, {to.out, to.width}, unit, to.width);
    prefetch_rows(prefetch, gradients.g, unit + 1, shape_.out_width());
    prefetch_rows(prefetch, gradients.x, unit + 1, shape_.in_width());
    to_spectra(g, shape_.rows, shape_.out_size, shape_.reflected, prefetch, z, g_hat);
    to_spectra(x, shape_.columns, shape_.in_size, false, prefetch, z, x_hat);
    shape_.reflected ? add_all_products<true>(g_hat, x_hat, gradients.sums)
                     : add_all_products<false>(g_hat, x_hat, gradients.sums);
    if (gradients.factors != nullptr) {
      from_spectra(g, gradients.factors, g_hat, shape_.rows, shape_.columns, to, prefetch, z, total);
    }
  }

  // ---- the parameter gradient ----

  void finish_gradient(C* sums, const char* poisoned, int64_t chunks, double scale, const Take& take) const {
    const int64_t blocks = shape_.blocks_of_group();
    parallel_(shape_.groups * blocks, grain_of_walks(chunks * spectrum_ * L), [&](int64_t begin, int64_t end) {
      C* z;
      Scalar* values;
      Scratch::take(Scratch::Request<C>{&z, gradients_.vectors()}, Scratch::Request<Scalar>{&values, t_.plan().length});
      for (int64_t item = begin; item < end; ++item) {
        const int64_t group = item / blocks, block = item % blocks;
        C* spectra = sums + (group * chunks * blocks + block) * spectrum_;
        gradients_.backward(spectra, chunks, blocks * spectrum_, scale, z, values);
        const char* flags = poisoned + group * chunks;
        const bool finite = std::find(flags, flags + chunks, char{1}) == flags + chunks;
        take(group, block / shape_.columns, block % shape_.columns, values, finite);
      }
    });
  }

  const SpectralShape shape_;
  const Transform<Scalar>& t_;
  const ParallelFor& parallel_;
  const int pairs_;         // packed rows in a batch; each meets its own copy of the parameter spectra
  const int64_t spectrum_;  // complex vectors in the spectrum of a batch
  const int batches_;       // batches in a unit, which share one copy of the parameter spectra
  const int unit_pairs_;
  const int64_t units_;
  const Batches<Storage> tokens_;
  const ParameterTransform<Scalar> parameters_;  // to their spectra
  const ParameterTransform<Scalar> gradients_;   // from the spectra summed over the tokens
};

template <class Storage>
SpectralProduct<Storage>::SpectralProduct(const SpectralShape& shape, const Transform<Scalar>& transform,
                                          const ParallelFor& parallel)
    : machine_(std::make_unique<const Machine>(shape, transform, parallel)) {}

template <class Storage>
SpectralProduct<Storage>::~SpectralProduct() = default;

template <class Storage>
auto SpectralProduct<Storage>::parameter_spectra(int64_t count, const Fill& fill) const -> Buffer<C> {
  return machine_->parameter_spectra(count, fill);
}

template <class Storage>
int64_t SpectralProduct<Storage>::spectrum_vectors() const {
  return machine_->parameter_spectrum();
}

template <class Storage>
void SpectralProduct<Storage>::matmul(const ConstRows& x, const C* factors, const ConstRows& base, double scale,
                                      Storage* y) const {
  machine_->matmul(x, factors, base, scale, y);
}

template <class Storage>
void SpectralProduct<Storage>::backward(const ConstRows& g, const ConstRows& x, const C* factors, double scale,
                                        Storage* x_gradient, const Take& take) const {
  machine_->backward(g, x, factors, scale, x_gradient, take);
}

template class SpectralProduct<double>;
template class SpectralProduct<float>;
template class SpectralProduct<BFloat16>;
template class SpectralProduct<Float16>;

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
