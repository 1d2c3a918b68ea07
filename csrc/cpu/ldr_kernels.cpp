// Products of low displacement rank, W = Σ_l Z_1(left_l) Z_-1(right_l), and their gradients, compiled once per
// instruction set.
//
// A pair of tokens goes through 2r + 2 transforms: one of x (twisted, where Z_-1 is diagonal), for each l one back and
// one into the domain where Z_1 is diagonal, and one back of the sum. All of it happens in a thread's working memory:
// two rows and two spectra. A size whose own transform would be slow is embedded (plan/block_kinds.h); then rows in
// between are cut to n values. Multiplying by the reversal J costs nothing: J = S^(n-1) R with the shift S, which goes
// into the spectrum of right_l, and the reflection R, which is a conjugation there.
#include "batches.h"
#include "chunks.h"
#include "layouts.h"
#include "ldr.h"
#include "parameter_transform.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

template <class Storage>
class LdrProduct {
  using Scalar = ComputeType<Storage>;
  using V = Vector<Scalar>;
  using C = Complex<V>;
  static constexpr int L = kLanes<Scalar>, T = kTile<Scalar>;

 public:
  LdrProduct(const LdrShape& shape, const ParallelFor& parallel)
      : shape_(shape),
        parallel_(parallel),
        transform_(transform_of<Scalar>(shape.size)),
        t_(*transform_),
        twisted_(!t_.plan().embedded()),
        pairs_(pairs_to_walk(t_, shape.tokens)),
        spectrum_(t_.spectrum_vectors(pairs_)),
        units_((shape.tokens + 2 * pairs_ - 1) / (2 * pairs_)),
        left_rows_(t_, shape.out_size, false),
        right_rows_(t_, shape.in_size, twisted_),
        left_parameters_(t_, pairs_, false),
        right_parameters_(t_, pairs_, twisted_) {}

  void matmul(const ConstRows& x, const Storage* left, const Storage* right, const ConstRows& base, double scale,
              Storage* y) const {
    const Buffer<C> spectra = parameter_spectra(left, right);
    const int64_t width = shape_.transposed ? shape_.in_size : shape_.out_size;
    parallel_(shape_.groups * units_, grain_of_walks(2 * pairs_ * values_of_token()), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t group = item / units_;
        const Destination<Storage> to{0,
                                      width,
                                      width,
                                      static_cast<Scalar>(scale),
                                      rows_of<Storage>(base, group),
                                      y + group * shape_.tokens * width,
                                      shape_.transposed && shape_.reflected};
        const C* group_spectra = spectra.data() + group * 2 * shape_.rank * spectrum_;
        const Rows<Storage> rows = rows_of<Storage>(x, group);
        shape_.transposed ? transposed_product(item % units_, rows, group_spectra, to)
                          : product(item % units_, rows, group_spectra, to);
      }
    });
  }

  void backward(const ConstRows& g, const ConstRows& x, const Storage* left, const Storage* right, double scale,
                Storage* x_gradient, Storage* left_gradient, Storage* right_gradient) const {
    const Buffer<C> spectra = parameter_spectra(left, right);
    const int64_t r = shape_.rank, sums_of_chunk = 2 * r * spectrum_;
    const int64_t chunks = chunks_of_sum(units_, shape_.tokens, sums_of_chunk * static_cast<int64_t>(sizeof(C)));
    const Buffer<C> sums(shape_.groups * chunks * sums_of_chunk);
    const Buffer<char> poisoned(shape_.groups * chunks);
    const int64_t values = 2 * shape_.tokens * values_of_token() / chunks;
    parallel_(shape_.groups * chunks, grain_of_walks(values), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t group = item / chunks, chunk = item % chunks;
        Gradients gradients{
            rows_of<Storage>(g, group),
            rows_of<Storage>(x, group),
            spectra.data() + group * 2 * r * spectrum_,
            {0, shape_.in_size, shape_.in_size, static_cast<Scalar>(scale), {}, nullptr, shape_.reflected},
            sums.data() + item * sums_of_chunk,
            &poisoned[item],
            x_gradient != nullptr,
            left_gradient != nullptr,
            right_gradient != nullptr};
        if (x_gradient != nullptr) gradients.to.out = x_gradient + group * shape_.tokens * shape_.in_size;
        std::fill(gradients.sums, gradients.sums + sums_of_chunk, C{V{}, V{}});
        poisoned[item] = 0;
        for (int64_t unit = units_ * chunk / chunks; unit < units_ * (chunk + 1) / chunks; ++unit) {
          unit_backward(unit, gradients);
        }
      }
    });
    if (left_gradient != nullptr) finish(sums.data(), poisoned.data(), chunks, scale, false, left_gradient);
    if (right_gradient != nullptr) finish(sums.data(), poisoned.data(), chunks, scale, true, right_gradient);
  }

 private:
  // One chunk's share of the gradients.
  struct Gradients {
    Rows<Storage> g, x;
    const C* spectra;
    Destination<Storage> to;
    C* sums;  // spectra of the gradients of left, then of right
    char* poisoned;
    bool need_x, need_left, need_right;
  };

  // A product takes 2 r + 2 transforms, a pair of tokens in each.
  int64_t values_of_token() const { return (shape_.rank + 1) * t_.plan().length; }

  // ---- parameters ----

  // Spectra of left and right, (groups, 2, r, spectrum); of those that are there.
  Buffer<C> parameter_spectra(const Storage* left, const Storage* right) const {
    const int64_t n = shape_.size, r = shape_.rank;
    Buffer<C> spectra(shape_.groups * 2 * r * spectrum_);
    parallel_(shape_.groups * 2 * r, grain_of_walks(pairs_ * t_.plan().length), [&](int64_t begin, int64_t end) {
      C* z;
      Scalar* values;
      take_parameter_memory(&z, &values);
      for (int64_t item = begin; item < end; ++item) {
        const bool is_right = item / r % 2 != 0;
        const Storage* v = is_right ? right : left;
        if (v == nullptr) continue;
        embed(generator_column(shape_, t_.plan().length, is_right), v + (item / (2 * r) * r + item % r) * n,
              t_.plan().length, values);
        (is_right ? right_parameters_ : left_parameters_).forward(values, z, spectra.data() + item * spectrum_);
      }
    });
    return spectra;
  }

  void finish(C* sums, const char* poisoned, int64_t chunks, double scale, bool is_right, Storage* gradient) const {
    const int64_t n = shape_.size, r = shape_.rank;
    const Layout layout = generator_column(shape_, t_.plan().length, is_right);
    parallel_(shape_.groups * r, grain_of_walks(chunks * spectrum_ * L), [&](int64_t begin, int64_t end) {
      C* z;
      Scalar* values;
      take_parameter_memory(&z, &values);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t group = item / r, l = item % r;
        C* spectra = sums + (group * chunks * 2 * r + (is_right ? r : 0) + l) * spectrum_;
        (is_right ? right_parameters_ : left_parameters_)
            .backward(spectra, chunks, 2 * r * spectrum_, scale, z, values);
        const char* flags = poisoned + group * chunks;
        const bool finite = std::find(flags, flags + chunks, char{1}) == flags + chunks;
        unembed(layout, values, finite, gradient + item * n);
      }
    });
  }

  void take_parameter_memory(C** z, Scalar** values) const {
    Scratch::take(Scratch::Request<C>{z, left_parameters_.vectors()},
                  Scratch::Request<Scalar>{values, t_.plan().length});
  }

  // ---- tokens ----

  const C* left_of(const C* spectra, int64_t l) const { return spectra + l * spectrum_; }
  const C* right_of(const C* spectra, int64_t l) const { return spectra + (shape_.rank + l) * spectrum_; }

  // z, n values of each row, from the domain of Z_-1 to that of Z_1 or back: a twist, or zeros beyond n.
  template <bool kToLeft>
  void change_domain(C* z) const {
    const int64_t n = shape_.size, vectors = t_.vectors();
    const V* twist = t_.twist();
    for (int pair = 0; pair < pairs_; ++pair, z += vectors) {
      if (twisted_) {
        for (int64_t k = 0; k < vectors; ++k) z[k] = multiply<kToLeft>(z[k], twist[2 * k], twist[2 * k + 1]);
      } else {
        for (int64_t k = n / L; k < vectors; ++k) {
          for (int64_t lane = std::max<int64_t>(0, n - k * L); lane < L; ++lane) z[k].re[lane] = z[k].im[lane] = 0;
        }
      }
    }
  }

  void load(const Batches<Storage>& rows, const Pair<Storage>* pairs, int64_t size, bool conjugate, C* z,
            C* spectrum) const {
    RowSource<Storage> sources[kMostPairs];
    Prefetch nothing;
    rows.load(pairs, pairs_, 0, size, conjugate, z, sources);
    walk_in(t_, pairs_, z, sources, nothing, [=](C* u, int64_t at) SURM_INLINE_LAMBDA {
      SURM_UNROLL
      for (int k = 0; k < T; ++k) spectrum[at + k] = {u[k].re, conjugate ? -u[k].im : u[k].im};
    });
  }

  void store(const Batches<Storage>& rows, const Pair<Storage>* pairs, const C* spectrum,
             const Destination<Storage>& to, C* z) const {
    RowSink<Storage> sinks[kMostPairs];
    Prefetch nothing;
    rows.aim(pairs, pairs_, shape_.tokens, to, sinks);
    walk_out(t_, pairs_, z, sinks, nothing, [&](C* u, int64_t at) SURM_INLINE_LAMBDA {
      SURM_UNROLL
      for (int k = 0; k < T; ++k)
        u[k] = {spectrum[at + k].re, to.conjugate ? -spectrum[at + k].im : spectrum[at + k].im};
    });
    rows.store(pairs, pairs_, shape_.tokens, to, z, sinks);
  }

  // z = rows of spectrum ∘ factor, or ∘ conj(factor).
  template <bool kConjugate>
  void product_to_rows(const C* spectrum, const C* factor, C* z) const {
    Prefetch nothing;
    walk_out<Storage>(t_, pairs_, z, nullptr, nothing, [=](C* u, int64_t at) SURM_INLINE_LAMBDA {
      SURM_UNROLL
      for (int k = 0; k < T; ++k) u[k] = multiply<kConjugate>(spectrum[at + k], factor[at + k].re, factor[at + k].im);
    });
  }

  template <class Tile>
  void rows_to_tiles(C* z, const Tile& tile) const {
    Prefetch nothing;
    walk_in<Storage>(t_, pairs_, z, nullptr, nothing, tile);
  }

  void product(int64_t unit, const Rows<Storage>& x, const C* spectra, const Destination<Storage>& to) const {
    C *z, *x_hat, *sum;
    Scratch::take(Scratch::Request<C>{&z, left_parameters_.vectors()}, Scratch::Request<C>{&x_hat, spectrum_},
                  Scratch::Request<C>{&sum, spectrum_});
    Pair<Storage> pairs[kMostPairs];
    find_pairs(x, 2 * unit * pairs_, pairs_, shape_.tokens, shape_.in_size, pairs);
    load(right_rows_, pairs, shape_.in_size, shape_.reflected, z, x_hat);
    std::fill(sum, sum + spectrum_, C{V{}, V{}});
    for (int64_t l = 0; l < shape_.rank; ++l) {
      product_to_rows<false>(x_hat, right_of(spectra, l), z);
      change_domain<true>(z);
      const C* left = left_of(spectra, l);
      rows_to_tiles(z, [=](C* u, int64_t at) SURM_INLINE_LAMBDA {
        SURM_UNROLL
        for (int k = 0; k < T; ++k) sum[at + k] = sum[at + k] + multiply<false>(u[k], left[at + k].re, left[at + k].im);
      });
    }
    store(left_rows_, pairs, sum, to, z);
  }

  void transposed_product(int64_t unit, const Rows<Storage>& g, const C* spectra,
                          const Destination<Storage>& to) const {
    C *z, *g_hat, *sum;
    Scratch::take(Scratch::Request<C>{&z, left_parameters_.vectors()}, Scratch::Request<C>{&g_hat, spectrum_},
                  Scratch::Request<C>{&sum, spectrum_});
    Pair<Storage> pairs[kMostPairs];
    find_pairs(g, 2 * unit * pairs_, pairs_, shape_.tokens, shape_.out_size, pairs);
    load(left_rows_, pairs, shape_.out_size, false, z, g_hat);
    std::fill(sum, sum + spectrum_, C{V{}, V{}});
    for (int64_t l = 0; l < shape_.rank; ++l) {
      product_to_rows<true>(g_hat, left_of(spectra, l), z);
      change_domain<false>(z);
      const C* right = right_of(spectra, l);
      rows_to_tiles(z, [=](C* u, int64_t at) SURM_INLINE_LAMBDA {
        SURM_UNROLL
        for (int k = 0; k < T; ++k) {
          sum[at + k] = sum[at + k] + multiply<true>(u[k], right[at + k].re, right[at + k].im);
        }
      });
    }
    store(right_rows_, pairs, sum, to, z);
  }

  // All gradients of a unit: 2r + 1 transforms for left, 2r + 2 more for right and x.
  void unit_backward(int64_t unit, const Gradients& gradients) const {
    C *z, *x_hat, *g_hat, *sum;
    Scratch::take(Scratch::Request<C>{&z, left_parameters_.vectors()}, Scratch::Request<C>{&x_hat, spectrum_},
                  Scratch::Request<C>{&g_hat, spectrum_}, Scratch::Request<C>{&sum, spectrum_});
    Pair<Storage> g[kMostPairs], x[kMostPairs];
    find_pairs(gradients.g, 2 * unit * pairs_, pairs_, shape_.tokens, shape_.out_size, g);
    if (!find_partners(gradients.x, g, pairs_, shape_.tokens, x)) *gradients.poisoned = 1;
    load(left_rows_, g, shape_.out_size, false, z, g_hat);
    load(right_rows_, x, shape_.in_size, shape_.reflected, z, x_hat);
    if (gradients.need_left) add_left_gradients(gradients, g_hat, x_hat, z);
    if (!gradients.need_x && !gradients.need_right) return;
    add_right_gradients(gradients, g_hat, x_hat, z, sum);
    if (gradients.need_x) store(right_rows_, g, sum, gradients.to, z);
  }

  // Of left_l: ĝ ∘ conj(û_l), u_l = Z_-1(right_l) x.
  void add_left_gradients(const Gradients& gradients, const C* g_hat, const C* x_hat, C* z) const {
    for (int64_t l = 0; l < shape_.rank; ++l) {
      product_to_rows<false>(x_hat, right_of(gradients.spectra, l), z);
      change_domain<true>(z);
      C* gradient = gradients.sums + l * spectrum_;
      rows_to_tiles(z, [=](C* u, int64_t at) SURM_INLINE_LAMBDA {
        SURM_UNROLL
        for (int k = 0; k < T; ++k) {
          gradient[at + k] = gradient[at + k] + multiply<true>(g_hat[at + k], u[k].re, u[k].im);
        }
      });
    }
  }

  // Of right_l: û_l ∘ conj(x̂), u_l = Z_1(left_l)ᵀ g; and sum = Σ û_l ∘ conj(right_l), the spectrum of x's gradient.
  void add_right_gradients(const Gradients& gradients, const C* g_hat, const C* x_hat, C* z, C* sum) const {
    std::fill(sum, sum + spectrum_, C{V{}, V{}});
    for (int64_t l = 0; l < shape_.rank; ++l) {
      product_to_rows<true>(g_hat, left_of(gradients.spectra, l), z);
      change_domain<false>(z);
      C* gradient = gradients.sums + (shape_.rank + l) * spectrum_;
      const C* right = right_of(gradients.spectra, l);
      const bool need_x = gradients.need_x;
      rows_to_tiles(z, [=](C* u, int64_t at) SURM_INLINE_LAMBDA {
        SURM_UNROLL
        for (int k = 0; k < T; ++k) {
          gradient[at + k] = gradient[at + k] + multiply<true>(u[k], x_hat[at + k].re, x_hat[at + k].im);
          if (need_x) sum[at + k] = sum[at + k] + multiply<true>(u[k], right[at + k].re, right[at + k].im);
        }
      });
    }
  }

  const LdrShape& shape_;
  const ParallelFor& parallel_;
  const std::shared_ptr<const Transform<Scalar>> transform_;
  const Transform<Scalar>& t_;
  const bool twisted_;      // else embedded
  const int pairs_;         // packed rows in a unit
  const int64_t spectrum_;  // complex vectors in the spectrum of a unit
  const int64_t units_;
  const Batches<Storage> left_rows_, right_rows_;  // rows of y and g, rows of x
  const ParameterTransform<Scalar> left_parameters_, right_parameters_;
};

void matmul(StorageType type, const LdrShape& shape, ConstRows x, const void* left, const void* right, ConstRows base,
            double scale, void* y, const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    LdrProduct<Storage>(shape, parallel)
        .matmul(x, static_cast<const Storage*>(left), static_cast<const Storage*>(right), base, scale,
                static_cast<Storage*>(y));
  });
}

void backward(StorageType type, const LdrShape& shape, ConstRows g, ConstRows x, const void* left, const void* right,
              double scale, void* x_gradient, void* left_gradient, void* right_gradient, const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    LdrProduct<Storage>(shape, parallel)
        .backward(g, x, static_cast<const Storage*>(left), static_cast<const Storage*>(right), scale,
                  static_cast<Storage*>(x_gradient), static_cast<Storage*>(left_gradient),
                  static_cast<Storage*>(right_gradient));
  });
}

}  // namespace

extern const LdrKernels ldr_kernels;
const LdrKernels ldr_kernels{matmul, backward};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
