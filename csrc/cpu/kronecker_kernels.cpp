// Products with A ⊗ B and their gradients on the CPU, compiled once per instruction set.
//
// A token x is a matrix X of q × s, and W x is A X Bᵀ: two products of small matrices for a batch of tokens in cache
// (kronecker_batches.h), the cheaper one first.
#include "chunks.h"
#include "kronecker.h"
#include "kronecker_batches.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

template <class Scalar>
constexpr int64_t padded(int64_t count) {
  return (count + kLanes<Scalar> - 1) / kLanes<Scalar> * kLanes<Scalar>;
}

// out (out_rows × columns) = left · tokens.
template <class Scalar>
void from_left(const Entries<Scalar>& left, int64_t out_rows, int64_t in_rows, int64_t columns, const Scalar* tokens,
               Scalar* out, Prefetch& prefetch) {
  multiply(out_rows, columns, in_rows, left, {tokens, columns}, out, columns, false, prefetch);
}

// out (rows × out_columns) = tokens · right.
template <class Scalar>
void from_right(const VectorRows<Scalar>& right, int64_t rows, int64_t in_columns, int64_t out_columns,
                const Scalar* tokens, Scalar* out, Prefetch& prefetch) {
  multiply(rows, out_columns, in_columns, {tokens, in_columns, 1}, right, out, out_columns, false, prefetch);
}

template <class Storage>
class Product {
  using Scalar = ComputeType<Storage>;

 public:
  Product(const KroneckerShape& shape, const Storage* a, const Storage* b)
      : shape_(shape),
        in_(shape.transposed ? Matrix{shape.p, shape.r} : Matrix{shape.q, shape.s}),
        out_(shape.transposed ? Matrix{shape.q, shape.s} : Matrix{shape.p, shape.r}),
        left_first_(work(true) < work(false)),
        middle_(left_first_ ? Matrix{out_.rows, in_.columns} : Matrix{in_.rows, out_.columns}),
        batches_(batches_of<Scalar>(shape.tokens, {outer() + middle_.size(), shape.p * shape.q + shape.r * shape.s,
                                                   work(left_first_), middle_.columns})),
        left_(a, shape.groups, shape.p, shape.q),
        right_(b, shape.groups, shape.r, shape.s, !shape.transposed) {}

  // y = base + scale · x Wᵀ, or x W.
  void operator()(const ConstRows& x, const ConstRows& base, double scale, Storage* y,
                  const ParallelFor& parallel) const {
    const TokenSink<Storage> to{y, shape_.tokens, out_, base, static_cast<Scalar>(scale)};
    const int64_t count = batches_.count();
    parallel(shape_.groups * count, items_worth_a_thread(batches_.size * work(left_first_)),
             [&](int64_t begin, int64_t end) {
               Scalar *tokens, *middle;
               Scratch::take(Scratch::Request<Scalar>{&tokens, batches_.size * outer()},
                             Scratch::Request<Scalar>{&middle, batches_.size * middle_.size()});
               for (int64_t item = begin; item < end; ++item) {
                 const Batch batch = batches_.at(item / count, item % count);
                 gather<Storage>(x, batch, in_, tokens);
                 Prefetch prefetch;
                 prefetch_destination(prefetch, batch, to);
                 prefetch_next<Storage>(prefetch, x, batch, batches_, in_);
                 multiply_batch(batch, tokens, middle, prefetch);
                 scatter(tokens, batch, to);
               }
             });
  }

 private:
  int64_t outer() const { return std::max(in_.size(), out_.size()); }

  // Of a token: a factor from the left fills its vectors, rows of a product from the right end in one partly filled.
  int64_t work(bool left_first) const {
    const Matrix middle = left_first ? Matrix{out_.rows, in_.columns} : Matrix{in_.rows, out_.columns};
    return out_.rows * in_.rows * middle.columns + middle.rows * in_.columns * padded<Scalar>(out_.columns);
  }

  // In place.
  void multiply_batch(const Batch& batch, Scalar* tokens, Scalar* middle, Prefetch& prefetch) const {
    const int64_t n = batch.count;
    const Entries<Scalar> left = shape_.transposed ? left_.transposed_at(batch.group) : left_.at(batch.group);
    const VectorRows<Scalar> right = right_.at(batch.group);
    if (left_first_) {
      from_left(left, out_.rows, in_.rows, n * in_.columns, tokens, middle, prefetch);
      from_right(right, out_.rows * n, in_.columns, out_.columns, middle, tokens, prefetch);
    } else {
      from_right(right, in_.rows * n, in_.columns, out_.columns, tokens, middle, prefetch);
      from_left(left, out_.rows, in_.rows, n * out_.columns, middle, tokens, prefetch);
    }
  }

  const KroneckerShape& shape_;
  const Matrix in_, out_;  // a token before and after
  const bool left_first_;
  const Matrix middle_;  // and between the two factors
  const TokenBatches batches_;
  const LeftFactors<Storage> left_;
  const RightFactors<Storage> right_;
};

struct Wanted {
  bool x, a, b;
};

// The gradients meet at one of two places, whichever costs less:
//   at q × r  U = Aᵀ G, x̄ = U B, b̄ = Σ Uᵀ X, and Z = X Bᵀ, ā = Σ G Zᵀ;
//   at p × s  V = G B, x̄ = Aᵀ V, ā = Σ V Xᵀ, and Y = A X, b̄ = Σ Gᵀ Y.
template <class Scalar>
int64_t gradient_work(const KroneckerShape& shape, const Wanted& wanted, bool at_qr) {
  const int64_t p = shape.p, q = shape.q, r = shape.r, s = shape.s;
  const int64_t full_q = padded<Scalar>(q), full_r = padded<Scalar>(r), full_s = padded<Scalar>(s);
  if (at_qr) {
    return (wanted.x || wanted.b) * p * q * r + (wanted.x + wanted.b) * q * r * full_s +
           wanted.a * (q * s * full_r + p * r * full_q);
  }
  return (wanted.x || wanted.a) * p * r * full_s + wanted.x * p * q * s + wanted.a * p * s * full_q +
         wanted.b * (p * q * s + p * r * full_s);
}

template <class Storage>
class Gradients {
  using Scalar = ComputeType<Storage>;

 public:
  Gradients(const KroneckerShape& shape, const Wanted& wanted, const Storage* a, const Storage* b)
      : shape_(shape),
        wanted_(wanted),
        at_qr_(gradient_work<Scalar>(shape, wanted, true) <= gradient_work<Scalar>(shape, wanted, false)),
        g_{shape.p, shape.r},
        x_{shape.q, shape.s},
        middle_(at_qr_ ? Matrix{shape.q, shape.r} : Matrix{shape.p, shape.s}),
        work_(gradient_work<Scalar>(shape, wanted, at_qr_)),
        batches_(batches_of<Scalar>(
            shape.tokens, {g_.size() + x_.size() + middle_.size(), a_size() + b_size(), work_, middle_.columns})),
        chunks_(chunks_of_sum(batches_.count(), shape.tokens,
                              (a_size() + b_size()) * static_cast<int64_t>(sizeof(Scalar)))) {
    if (wanted.x || wanted.b) a_ = {a, shape.groups, shape.p, shape.q};
    if (wanted.x || (wanted.a && !at_qr_)) b_ = {b, shape.groups, shape.r, shape.s, false};
    if (wanted.a && at_qr_) b_transposed_ = {b, shape.groups, shape.r, shape.s, true};
  }

  // The gradients of scale · ⟨g, x Wᵀ⟩.
  void operator()(const ConstRows& g, const ConstRows& x, double scale, Storage* x_gradient, Storage* a_gradient,
                  Storage* b_gradient, const ParallelFor& parallel) const {
    const Buffer<Scalar> a_sums(wanted_.a ? shape_.groups * chunks_ * a_size() : 0);
    const Buffer<Scalar> b_sums(wanted_.b ? shape_.groups * chunks_ * b_size() : 0);
    const TokenSink<Storage> to{x_gradient, shape_.tokens, x_, {}, static_cast<Scalar>(scale)};
    parallel(shape_.groups * chunks_, items_worth_a_thread(shape_.tokens / chunks_ * work_),
             [&](int64_t begin, int64_t end) {
               for (int64_t item = begin; item < end; ++item) {
                 sum_chunk(item, g, x, to, a_sums.data() + (wanted_.a ? item * a_size() : 0),
                           b_sums.data() + (wanted_.b ? item * b_size() : 0));
               }
             });
    if (wanted_.a) finish(a_sums.data(), a_size(), scale, a_gradient, parallel);
    if (wanted_.b) finish(b_sums.data(), b_size(), scale, b_gradient, parallel);
  }

 private:
  // A batch in cache and the sums of its chunk; x becomes its gradient.
  struct Work {
    int64_t group, tokens;
    Scalar *g, *x, *middle, *turned, *a_sums, *b_sums;
    Prefetch prefetch;
  };

  int64_t a_size() const { return shape_.p * shape_.q; }
  int64_t b_size() const { return shape_.r * shape_.s; }

  void sum_chunk(int64_t item, const ConstRows& g, const ConstRows& x, const TokenSink<Storage>& to, Scalar* a_sums,
                 Scalar* b_sums) const {
    const int64_t group = item / chunks_, chunk = item % chunks_, count = batches_.count();
    if (wanted_.a) std::fill(a_sums, a_sums + a_size(), Scalar{0});
    if (wanted_.b) std::fill(b_sums, b_sums + b_size(), Scalar{0});
    Work work{group, 0, nullptr, nullptr, nullptr, nullptr, a_sums, b_sums, {}};
    Scratch::take(Scratch::Request<Scalar>{&work.g, batches_.size * g_.size()},
                  Scratch::Request<Scalar>{&work.x, batches_.size * x_.size()},
                  Scratch::Request<Scalar>{&work.middle, batches_.size * middle_.size()},
                  Scratch::Request<Scalar>{&work.turned, kMostTerms * padded<Scalar>(shape_.q)});
    for (int64_t index = count * chunk / chunks_; index < count * (chunk + 1) / chunks_; ++index) {
      const Batch batch = batches_.at(group, index);
      work.tokens = batch.count;
      work.prefetch = {};
      gather<Storage>(g, batch, g_, work.g);
      prefetch_next<Storage>(work.prefetch, g, batch, batches_, g_);
      if (wanted_.a || wanted_.b) {
        gather<Storage>(x, batch, x_, work.x);
        prefetch_next<Storage>(work.prefetch, x, batch, batches_, x_);
      }
      if (wanted_.x) prefetch_destination(work.prefetch, batch, to);
      at_qr_ ? meet_at_qr(work) : meet_at_ps(work);
      if (wanted_.x) scatter(work.x, batch, to);
    }
  }

  void meet_at_qr(Work& work) const {
    const int64_t p = shape_.p, q = shape_.q, r = shape_.r, s = shape_.s, n = work.tokens;
    if (wanted_.a) {
      from_right(b_transposed_.at(work.group), q * n, s, r, work.x, work.middle, work.prefetch);
      add_product_with_transpose(p, q, n * r, work.g, work.middle, work.turned, work.a_sums, work.prefetch);
    }
    if (!wanted_.x && !wanted_.b) return;
    from_left(a_.transposed_at(work.group), q, p, n * r, work.g, work.middle, work.prefetch);
    if (wanted_.b) multiply(r, s, q * n, {work.middle, 1, r}, {work.x, s}, work.b_sums, s, true, work.prefetch);
    if (wanted_.x) from_right(b_.at(work.group), q * n, r, s, work.middle, work.x, work.prefetch);
  }

  void meet_at_ps(Work& work) const {
    const int64_t p = shape_.p, q = shape_.q, r = shape_.r, s = shape_.s, n = work.tokens;
    if (wanted_.b) {
      from_left(a_.at(work.group), p, q, n * s, work.x, work.middle, work.prefetch);
      multiply(r, s, p * n, {work.g, 1, r}, {work.middle, s}, work.b_sums, s, true, work.prefetch);
    }
    if (!wanted_.x && !wanted_.a) return;
    from_right(b_.at(work.group), p * n, r, s, work.g, work.middle, work.prefetch);
    if (wanted_.a) {
      add_product_with_transpose(p, q, n * s, work.middle, work.x, work.turned, work.a_sums, work.prefetch);
    }
    if (wanted_.x) from_left(a_.transposed_at(work.group), q, p, n * s, work.middle, work.x, work.prefetch);
  }

  // gradient = scale · the sums of the chunks by a fixed tree; `sums` is used up.
  void finish(Scalar* sums, int64_t size, double scale, Storage* gradient, const ParallelFor& parallel) const {
    constexpr int64_t L = kLanes<Scalar>;
    const int64_t vectors = (size + L - 1) / L;
    parallel(shape_.groups * vectors, items_worth_a_thread(chunks_ * L), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t group = item / vectors, j = item % vectors * L, lanes = std::min(L, size - j);
        Scalar* first = sums + group * chunks_ * size + j;
        add_chunks(chunks_, [=](int64_t chunk, int64_t other) {
          Scalar* to = first + chunk * size;
          store_first(to, load_first(to, lanes) + load_first(first + other * size, lanes), lanes);
        });
        store_first(gradient + group * size + j, load_first(first, lanes) * static_cast<Scalar>(scale), lanes);
      }
    });
  }

  const KroneckerShape& shape_;
  const Wanted wanted_;
  const bool at_qr_;
  const Matrix g_, x_, middle_;  // a token of g, of x, and where the gradients meet
  const int64_t work_;           // of a token
  const TokenBatches batches_;
  const int64_t chunks_;
  LeftFactors<Storage> a_;
  RightFactors<Storage> b_, b_transposed_;
};

void matmul(StorageType type, const KroneckerShape& shape, ConstRows x, const void* a, const void* b, ConstRows base,
            double scale, void* y, const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    const Product<Storage> product(shape, static_cast<const Storage*>(a), static_cast<const Storage*>(b));
    product(x, base, scale, static_cast<Storage*>(y), parallel);
  });
}

void backward(StorageType type, const KroneckerShape& shape, ConstRows g, ConstRows x, const void* a, const void* b,
              double scale, void* x_gradient, void* a_gradient, void* b_gradient, const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    const Wanted wanted{x_gradient != nullptr, a_gradient != nullptr, b_gradient != nullptr};
    const Gradients<Storage> gradients(shape, wanted, static_cast<const Storage*>(a), static_cast<const Storage*>(b));
    gradients(g, x, scale, static_cast<Storage*>(x_gradient), static_cast<Storage*>(a_gradient),
              static_cast<Storage*>(b_gradient), parallel);
  });
}

}  // namespace

extern const KroneckerKernels kronecker_kernels;
const KroneckerKernels kronecker_kernels{matmul, backward};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
