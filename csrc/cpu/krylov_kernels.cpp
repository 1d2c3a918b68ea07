// Block f-circulant products and their gradients on the CPU, f = ±1, compiled once per instruction set.
//
// f = 1 is a circulant product as it stands. f = -1 becomes one by the twist exp(iπ j/n). A size whose own transform
// would be slow is embedded: the first column is laid out in a circulant of a smooth length N >= 2n - 1, for either f.
#include <limits>

#include "krylov.h"
#include "spectral_product.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

template <class Storage>
class KrylovProduct {
  using Scalar = ComputeType<Storage>;
  using C = Complex<Vector<Scalar>>;
  static constexpr int L = kLanes<Scalar>;

 public:
  KrylovProduct(const KrylovShape& shape, const ParallelFor& parallel)
      : shape_(shape),
        transform_(transform_of<Scalar>(shape.block)),
        length_(transform_->plan().length),
        rows_(shape.transposed ? shape.in_blocks : shape.out_blocks),
        columns_(shape.transposed ? shape.out_blocks : shape.in_blocks),
        product_({shape.groups, shape.tokens, rows_, columns_, shape.block, shape.block,
                  shape.sign < 0 && !transform_->plan().embedded(), false},
                 *transform_, parallel) {}

  void matmul(const ConstRows& x, const Storage* v, const ConstRows& base, double scale, Storage* y) const {
    const Buffer<C> factors = spectra(v, shape_.transposed, rows_, columns_);
    product_.matmul(x, factors.data(), base, scale, y);
  }

  void backward(const ConstRows& g, const ConstRows& x, const Storage* v, double scale, Storage* x_gradient,
                Storage* v_gradient) const {
    Buffer<C> factors;
    if (x_gradient != nullptr) factors = spectra(v, !shape_.transposed, columns_, rows_);
    const auto take = [&](int64_t group, int64_t row, int64_t column, Scalar* values, bool finite) {
      const int64_t block = shape_.transposed ? column * rows_ + row : row * columns_ + column;
      unembed(values, finite, v_gradient + (group * rows_ * columns_ + block) * shape_.block);
    };
    product_.backward(g, x, factors.data(), scale, x_gradient, take);
  }

 private:
  // Spectra of the out × in blocks of W(v), or of W(v)ᵀ when reversed.
  Buffer<C> spectra(const Storage* v, bool reversed, int64_t out, int64_t in) const {
    return product_.parameter_spectra(shape_.groups * out * in, [&](int64_t item, Scalar* values) {
      const int64_t group = item / (out * in), i = item / in % out, j = item % in;
      const int64_t block = reversed ? j * out + i : i * in + j;
      embed(v + (group * out * in + block) * shape_.block, reversed, values);
    });
  }

  // The first column of the N × N circulant that acts as Z_f(v), or as its transpose Z_f(v'), on the first n values:
  // v' = [v_0, f v_{n-1}, …, f v_1]. If N > n, what wraps around comes from the end: values[N-n+j] = f v_j.
  void embed(const Storage* v, bool reversed, Scalar* values) const {
    const int64_t n = shape_.block;
    const auto f = static_cast<Scalar>(shape_.sign);
    for (int64_t j = 0; j < n; j += L) {
      const int count = static_cast<int>(std::min<int64_t>(L, n - j));
      store_partial<Scalar>(values + j, load_partial(v + j, count), count);
    }
    if (reversed && n > 1) {
      std::reverse(values + 1, values + n);
      for (int64_t j = 1; j < n; ++j) values[j] *= f;
    }
    if (length_ == n) return;
    std::fill(values + n, values + length_, Scalar{0});
    for (int64_t j = 1; j < n; ++j) values[length_ - n + j] = f * values[j];
  }

  // The adjoint of embed(): the gradient of v from that of the circulant's first column, which is used up.
  void unembed(Scalar* values, bool finite, Storage* v) const {
    const int64_t n = shape_.block;
    const auto f = static_cast<Scalar>(shape_.sign);
    if (length_ != n) {
      for (int64_t j = 1; j < n; ++j) values[j] += f * values[length_ - n + j];
    }
    if (shape_.transposed && n > 1) {
      for (int64_t j = 1; j < n; ++j) values[j] *= f;
      std::reverse(values + 1, values + n);
    }
    if (!finite) std::fill(values, values + n, std::numeric_limits<Scalar>::quiet_NaN());
    for (int64_t j = 0; j < n; j += L) {
      const int count = static_cast<int>(std::min<int64_t>(L, n - j));
      store_partial(v + j, load_partial<Scalar>(values + j, count), count);
    }
  }

  const KrylovShape& shape_;
  const std::shared_ptr<const Transform<Scalar>> transform_;
  const int64_t length_;          // N
  const int64_t rows_, columns_;  // blocks of an output and of an input row
  const SpectralProduct<Storage> product_;
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
