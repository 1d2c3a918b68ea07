// Block f-circulant products and their gradients on the CPU, f = ±1, compiled once per instruction set.
//
// f = 1 is a circulant product as it stands. f = -1 becomes one by the twist exp(iπ j/n). A size whose own transform
// would be slow is embedded: the first column is laid out in a circulant of a smooth length N >= 2n - 1, for either f.
#include "f_circulant.h"
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

  int64_t spectrum_size() const {
    return shape_.groups * rows_ * columns_ * product_.spectrum_vectors() *
           static_cast<int64_t>(sizeof(C) / sizeof(Scalar));
  }

  void spectrum(const Storage* v, Scalar* spectrum) const {
    const Buffer<C> factors = spectra(v, shape_.transposed, rows_, columns_);
    std::memcpy(spectrum, factors.data(), spectrum_size() * sizeof(Scalar));
  }

  void matmul_by_spectrum(const ConstRows& x, const Scalar* spectrum, const ConstRows& base, double scale,
                          Storage* y) const {
    product_.matmul(x, reinterpret_cast<const C*>(spectrum), base, scale, y);
  }

  void backward(const ConstRows& g, const ConstRows& x, const Storage* v, double scale, Storage* x_gradient,
                Storage* v_gradient) const {
    Buffer<C> factors;
    if (x_gradient != nullptr) factors = spectra(v, !shape_.transposed, columns_, rows_);
    const auto take = [&](int64_t group, int64_t row, int64_t column, Scalar* values, bool finite) {
      const int64_t block = shape_.transposed ? column * rows_ + row : row * columns_ + column;
      if (shape_.transposed) transpose_f_circulant(length_, length_ == shape_.block ? shape_.sign : 1, values);
      unembed_f_circulant(values, shape_.block, length_, shape_.sign, finite,
                          v_gradient + (group * rows_ * columns_ + block) * shape_.block);
    };
    product_.backward(g, x, factors.data(), scale, x_gradient, take);
  }

 private:
  // Spectra of the out × in blocks of W(v), or of W(v)ᵀ when reversed.
  Buffer<C> spectra(const Storage* v, bool reversed, int64_t out, int64_t in) const {
    return product_.parameter_spectra(shape_.groups * out * in, [&](int64_t item, Scalar* values) {
      const int64_t group = item / (out * in), i = item / in % out, j = item % in;
      const int64_t block = reversed ? j * out + i : i * in + j;
      embed_f_circulant(v + (group * out * in + block) * shape_.block, shape_.block, length_, shape_.sign, values);
      if (reversed) transpose_f_circulant(length_, length_ == shape_.block ? shape_.sign : 1, values);
    });
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

int64_t spectrum_size(StorageType type, const KrylovShape& shape) {
  int64_t size = 0;
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    size = KrylovProduct<Storage>(shape, ParallelFor{}).spectrum_size();
  });
  return size;
}

void spectrum(StorageType type, const KrylovShape& shape, const void* v, void* spectrum, const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    KrylovProduct<Storage>(shape, parallel)
        .spectrum(static_cast<const Storage*>(v), static_cast<ComputeType<Storage>*>(spectrum));
  });
}

bool matmul_by_spectrum(StorageType type, const KrylovShape& shape, ConstRows x, const void* spectrum, int64_t size,
                        ConstRows base, double scale, void* y, const ParallelFor& parallel) {
  bool fits = false;
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    const KrylovProduct<Storage> product(shape, parallel);
    fits = product.spectrum_size() == size;
    if (!fits) return;
    product.matmul_by_spectrum(x, static_cast<const ComputeType<Storage>*>(spectrum), base, scale,
                               static_cast<Storage*>(y));
  });
  return fits;
}

}  // namespace

extern const KrylovKernels krylov_kernels;
const KrylovKernels krylov_kernels{matmul, backward, spectrum_size, spectrum, matmul_by_spectrum};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
