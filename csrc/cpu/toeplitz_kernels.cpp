// Toeplitz and Hankel products and their gradients on the CPU, compiled once per instruction set.
//
// A grid of m × n Toeplitz blocks is a part of a grid of N × N circulant ones for any N >= m + n - 1: t is laid out
// along the first column. (Its even and odd frequencies are the circulant and the skew-circulant half of which a square
// Toeplitz matrix is the sum.) A Hankel matrix is one with the rows of x in reversed order, which in the frequency
// domain is a conjugation and costs nothing.
#include <limits>

#include "spectral_product.h"
#include "toeplitz.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

// Rows are of type Storage, t and its gradient of type Parameter.
template <class Storage, class Parameter>
class ToeplitzProduct {
  using Scalar = ComputeType<Storage>;
  using C = Complex<Vector<Scalar>>;

 public:
  ToeplitzProduct(const ToeplitzShape& shape, const ParallelFor& parallel)
      : shape_(shape),
        count_(shape.rows + shape.columns - 1),
        transform_(transform_of<Scalar>(count_, true)),
        length_(transform_->plan().length),
        product_(shape.transposed ? SpectralShape{shape.groups, shape.tokens, shape.in_blocks, shape.out_blocks,
                                                  shape.columns, shape.rows, false, shape.reflected}
                                  : SpectralShape{shape.groups, shape.tokens, shape.out_blocks, shape.in_blocks,
                                                  shape.rows, shape.columns, false, shape.reflected},
                 *transform_, parallel) {}

  void matmul(const ConstRows& x, const Parameter* t, const ConstRows& base, double scale, Storage* y) const {
    const Buffer<C> factors = spectra(t, shape_.transposed);
    product_.matmul(x, factors.data(), base, scale, y);
  }

  int64_t spectrum_size() const {
    return shape_.groups * shape_.out_blocks * shape_.in_blocks * product_.spectrum_vectors() *
           static_cast<int64_t>(sizeof(C) / sizeof(Scalar));
  }

  void spectrum(const Parameter* t, Scalar* spectrum) const {
    const Buffer<C> factors = spectra(t, shape_.transposed);
    std::memcpy(spectrum, factors.data(), spectrum_size() * sizeof(Scalar));
  }

  void matmul_by_spectrum(const ConstRows& x, const Scalar* spectrum, const ConstRows& base, double scale,
                          Storage* y) const {
    product_.matmul(x, reinterpret_cast<const C*>(spectrum), base, scale, y);
  }

  void backward(const ConstRows& g, const ConstRows& x, const Parameter* t, double scale, Storage* x_gradient,
                Parameter* t_gradient) const {
    Buffer<C> factors;
    if (x_gradient != nullptr) factors = spectra(t, true);
    const auto take = [&](int64_t group, int64_t row, int64_t column, const Scalar* values, bool finite) {
      unembed(values, finite, t_gradient + ((group * shape_.out_blocks + row) * shape_.in_blocks + column) * count_);
    };
    product_.backward(g, x, factors.data(), scale, x_gradient, take);
  }

 private:
  // Spectra of the blocks of W(t), or of W(t)ᵀ.
  Buffer<C> spectra(const Parameter* t, bool transposed) const {
    const int64_t M = shape_.out_blocks, K = shape_.in_blocks;
    return product_.parameter_spectra(shape_.groups * M * K, [&, transposed](int64_t item, Scalar* values) {
      const int64_t group = item / (M * K), within = item % (M * K);
      const int64_t block = transposed ? within % M * K + within / M : within;
      embed(t + (group * M * K + block) * count_, transposed, values);
    });
  }

  // Where t_k is in the first column of the circulant: diagonal i - j = k - (n - 1) of W, from the end if negative;
  // transposed, the diagonal changes sign. Reflected, x_j sits at -j and t_k at i + j = k.
  int64_t place(int64_t k, bool transposed) const {
    if (shape_.reflected) return k;
    const int64_t diagonal = transposed ? shape_.columns - 1 - k : k - (shape_.columns - 1);
    return diagonal < 0 ? diagonal + length_ : diagonal;
  }

  void embed(const Parameter* t, bool transposed, Scalar* values) const {
    std::fill(values, values + length_, Scalar{0});
    for (int64_t k = 0; k < count_; ++k) values[place(k, transposed)] = load_partial(t + k, 1)[0];
  }

  // The adjoint of embed().
  void unembed(const Scalar* values, bool finite, Parameter* t) const {
    constexpr int L = kLanes<Scalar>;
    for (int64_t k = 0; k < count_; k += L) {
      const int count = static_cast<int>(std::min<int64_t>(L, count_ - k));
      Vector<Scalar> value{};
      for (int lane = 0; lane < count; ++lane) {
        value[lane] = finite ? values[place(k + lane, false)] : std::numeric_limits<Scalar>::quiet_NaN();
      }
      store_partial(t + k, value, count);
    }
  }

  const ToeplitzShape& shape_;
  const int64_t count_;  // m + n - 1, values of a block
  const std::shared_ptr<const Transform<Scalar>> transform_;
  const int64_t length_;  // N
  const SpectralProduct<Storage> product_;
};

// Calls body with a value of the type of the rows and one of the type of t.
template <class Body>
void with_types(StorageType type, bool wide, const Body& body) {
  with_storage(type, [&](auto tag) { wide ? body(tag, ComputeType<decltype(tag)>{}) : body(tag, tag); });
}

void matmul(StorageType type, const ToeplitzShape& shape, ConstRows x, const void* t, ConstRows base, double scale,
            void* y, const ParallelFor& parallel) {
  with_types(type, shape.wide, [&](auto row, auto parameter) {
    using Storage = decltype(row);
    using Parameter = decltype(parameter);
    ToeplitzProduct<Storage, Parameter>(shape, parallel)
        .matmul(x, static_cast<const Parameter*>(t), base, scale, static_cast<Storage*>(y));
  });
}

void backward(StorageType type, const ToeplitzShape& shape, ConstRows g, ConstRows x, const void* t, double scale,
              void* x_gradient, void* t_gradient, const ParallelFor& parallel) {
  with_types(type, shape.wide, [&](auto row, auto parameter) {
    using Storage = decltype(row);
    using Parameter = decltype(parameter);
    ToeplitzProduct<Storage, Parameter>(shape, parallel)
        .backward(g, x, static_cast<const Parameter*>(t), scale, static_cast<Storage*>(x_gradient),
                  static_cast<Parameter*>(t_gradient));
  });
}

int64_t spectrum_size(StorageType type, const ToeplitzShape& shape) {
  int64_t size = 0;
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    size = ToeplitzProduct<Storage, Storage>(shape, ParallelFor{}).spectrum_size();
  });
  return size;
}

void spectrum(StorageType type, const ToeplitzShape& shape, const void* t, void* spectrum,
              const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    ToeplitzProduct<Storage, Storage>(shape, parallel)
        .spectrum(static_cast<const Storage*>(t), static_cast<ComputeType<Storage>*>(spectrum));
  });
}

bool matmul_by_spectrum(StorageType type, const ToeplitzShape& shape, ConstRows x, const void* spectrum, int64_t size,
                        ConstRows base, double scale, void* y, const ParallelFor& parallel) {
  bool fits = false;
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    const ToeplitzProduct<Storage, Storage> product(shape, parallel);
    fits = product.spectrum_size() == size;
    if (!fits) return;
    product.matmul_by_spectrum(x, static_cast<const ComputeType<Storage>*>(spectrum), base, scale,
                               static_cast<Storage*>(y));
  });
  return fits;
}

}  // namespace

extern const ToeplitzKernels toeplitz_kernels;
const ToeplitzKernels toeplitz_kernels{matmul, backward, spectrum_size, spectrum, matmul_by_spectrum};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
