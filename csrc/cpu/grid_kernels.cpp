// Products with a grid of blocks and their gradients on the CPU, compiled once per instruction set: blocks become
// circulants (plan/block_kinds.h), whose products are those of spectral_product.h.
#include <utility>

#include "grid.h"
#include "layouts.h"
#include "spectral_product.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

// Rows are of type Storage, v and its gradient of type Value.
template <class Storage, class Value>
class GridProduct {
  using Scalar = ComputeType<Storage>;
  using C = Complex<Vector<Scalar>>;

 public:
  GridProduct(const GridShape& shape, const ParallelFor& parallel)
      : shape_(shape),
        block_(shape),
        transform_(transform_of<Scalar>(block_.count(), block_.padded())),
        length_(transform_->plan().length),
        product_(spectral_shape(shape, length_), *transform_, parallel) {}

  void matmul(const ConstRows& x, const Value* v, const ConstRows& base, double scale, Storage* y) const {
    const Buffer<C> factors = spectra(v, shape_.transposed);
    product_.matmul(x, factors.data(), base, scale, y);
  }

  int64_t spectrum_size() const {
    return shape_.groups * shape_.out_blocks * shape_.in_blocks * product_.spectrum_vectors() *
           static_cast<int64_t>(sizeof(C) / sizeof(Scalar));
  }

  void spectrum(const Value* v, Scalar* spectrum) const {
    const Buffer<C> factors = spectra(v, shape_.transposed);
    std::memcpy(spectrum, factors.data(), spectrum_size() * sizeof(Scalar));
  }

  void matmul_by_spectrum(const ConstRows& x, const Scalar* spectrum, const ConstRows& base, double scale,
                          Storage* y) const {
    product_.matmul(x, reinterpret_cast<const C*>(spectrum), base, scale, y);
  }

  void backward(const ConstRows& g, const ConstRows& x, const Value* v, double scale, Storage* x_gradient,
                Value* v_gradient) const {
    Buffer<C> factors;
    if (x_gradient != nullptr) factors = spectra(v, !shape_.transposed);
    const Layout layout = block_.column(length_, shape_.transposed);
    const auto take = [&](int64_t group, int64_t row, int64_t column, const Scalar* values, bool finite) {
      const int64_t block = place(group, row, column, shape_.transposed);
      unembed(layout, values, finite, v_gradient + block * layout.count);
    };
    product_.backward(g, x, factors.data(), scale, x_gradient, take);
  }

 private:
  // Of block (row, column) of W, or of Wᵀ, among the blocks of v.
  int64_t place(int64_t group, int64_t row, int64_t column, bool transposed) const {
    if (transposed) std::swap(row, column);
    return (group * shape_.out_blocks + row) * shape_.in_blocks + column;
  }

  // Spectra of the blocks of W(v), or of W(v)ᵀ.
  Buffer<C> spectra(const Value* v, bool transposed) const {
    const Layout layout = block_.column(length_, transposed);
    const int64_t rows = transposed ? shape_.in_blocks : shape_.out_blocks;
    const int64_t columns = transposed ? shape_.out_blocks : shape_.in_blocks;
    return product_.parameter_spectra(shape_.groups * rows * columns, [&](int64_t item, Scalar* values) {
      const int64_t block = place(item / (rows * columns), item / columns % rows, item % columns, transposed);
      embed(layout, v + block * layout.count, length_, values);
    });
  }

  const GridShape& shape_;
  const Block block_;
  const std::shared_ptr<const Transform<Scalar>> transform_;
  const int64_t length_;  // N
  const SpectralProduct<Storage> product_;
};

// Calls body with the product for rows of a type and values of it, or of that of the arithmetic if they are wide.
template <class Body>
void with_product(StorageType type, const GridShape& shape, const ParallelFor& parallel, const Body& body) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    using Scalar = ComputeType<Storage>;
    if (!shape.wide) return body(GridProduct<Storage, Storage>(shape, parallel), Storage{}, Storage{});
    body(GridProduct<Storage, Scalar>(shape, parallel), Storage{}, Scalar{});
  });
}

void matmul(StorageType type, const GridShape& shape, ConstRows x, const void* v, ConstRows base, double scale, void* y,
            const ParallelFor& parallel) {
  with_product(type, shape, parallel, [&](const auto& product, auto row, auto value) {
    product.matmul(x, static_cast<const decltype(value)*>(v), base, scale, static_cast<decltype(row)*>(y));
  });
}

void backward(StorageType type, const GridShape& shape, ConstRows g, ConstRows x, const void* v, double scale,
              void* x_gradient, void* v_gradient, const ParallelFor& parallel) {
  with_product(type, shape, parallel, [&](const auto& product, auto row, auto value) {
    product.backward(g, x, static_cast<const decltype(value)*>(v), scale, static_cast<decltype(row)*>(x_gradient),
                     static_cast<decltype(value)*>(v_gradient));
  });
}

int64_t spectrum_size(StorageType type, const GridShape& shape) {
  int64_t size = 0;
  with_product(type, shape, {}, [&](const auto& product, auto, auto) { size = product.spectrum_size(); });
  return size;
}

void spectrum(StorageType type, const GridShape& shape, const void* v, void* spectrum, const ParallelFor& parallel) {
  with_product(type, shape, parallel, [&](const auto& product, auto, auto value) {
    using Value = decltype(value);
    product.spectrum(static_cast<const Value*>(v), static_cast<ComputeType<Value>*>(spectrum));
  });
}

bool matmul_by_spectrum(StorageType type, const GridShape& shape, ConstRows x, const void* spectrum, int64_t size,
                        ConstRows base, double scale, void* y, const ParallelFor& parallel) {
  bool fits = false;
  with_product(type, shape, parallel, [&](const auto& product, auto row, auto) {
    using Storage = decltype(row);
    fits = product.spectrum_size() == size;
    if (!fits) return;
    product.matmul_by_spectrum(x, static_cast<const ComputeType<Storage>*>(spectrum), base, scale,
                               static_cast<Storage*>(y));
  });
  return fits;
}

}  // namespace

extern const GridKernels grid_kernels;
const GridKernels grid_kernels{matmul, backward, spectrum_size, spectrum, matmul_by_spectrum};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
