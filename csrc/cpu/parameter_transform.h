// Parameters to their spectra, and spectra of gradients back to parameters.
#pragma once

#include "chunks.h"
#include "works.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

// For walks that take `pairs` packed rows together: the spectrum of a parameter has a copy for each.
template <class Scalar>
class ParameterTransform {
  using V = Vector<Scalar>;
  using C = Complex<V>;
  static constexpr int L = kLanes<Scalar>;

 public:
  ParameterTransform(const Transform<Scalar>& transform, int pairs, bool twisted)
      : t_(transform), pairs_(pairs), twisted_(twisted) {}

  int64_t vectors() const { return pairs_ * t_.vectors(); }  // of the working memory `z` below

  // spectrum = that of the circulant whose first column is `values`, divided by the transform's length.
  void forward(const Scalar* values, C* z, C* spectrum) const {
    const int64_t vectors = t_.vectors();
    const V inverse_length = V{} + static_cast<Scalar>(1) / static_cast<Scalar>(t_.plan().length);
    for (int64_t k = 0; k < vectors; ++k) {
      const C value{load_as<V>(values + k * L) * inverse_length, V{}};
      z[k] = twisted_ ? multiply<false>(value, t_.twist()[2 * k], t_.twist()[2 * k + 1]) : value;
    }
    for (int pair = 1; pair < pairs_; ++pair) std::copy(z, z + vectors, z + pair * vectors);
    Prefetch nothing;
    to_spectrum<Scalar>(t_, pairs_, z, nullptr, nothing, spectrum);
  }

  // values = factor · the gradient of a first column from that of its spectrum, which is the sum of `chunks` spectra,
  // `distance` vectors apart; they are added in a fixed tree and used up.
  void backward(C* spectra, int64_t chunks, int64_t distance, double scale, C* z, Scalar* values) const {
    const int64_t count = t_.spectrum_vectors(pairs_);
    add_chunks(chunks, [=](int64_t chunk, int64_t other) {
      C *to = spectra + chunk * distance, *from = spectra + other * distance;
      for (int64_t k = 0; k < count; ++k) to[k] = to[k] + from[k];
    });
    Prefetch nothing;
    from_spectrum<Scalar>(t_, pairs_, spectra, nullptr, nothing, z);
    // The real part of the sum over the pairs of a batch: both rows of a pair are in it.
    const auto factor = static_cast<Scalar>(scale / static_cast<double>(t_.plan().length));
    const int64_t vectors = t_.vectors();
    for (int64_t k = 0; k < vectors; ++k) {
      C total = z[k];
      for (int pair = 1; pair < pairs_; ++pair) total = total + z[pair * vectors + k];
      if (twisted_) total = multiply<true>(total, t_.twist()[2 * k], t_.twist()[2 * k + 1]);
      store_vector<Scalar>(values + k * L, total.re * factor);
    }
  }

 private:
  const Transform<Scalar>& t_;
  const int pairs_;
  const bool twisted_;
};

// Packed rows to walk together: enough to fill tiles, and short rows more, so that what a walk costs beside its
// arithmetic is shared; but no more than there are tokens for.
constexpr int kMostPairs = 32;

template <class Scalar>
int pairs_to_walk(const Transform<Scalar>& transform, int64_t tokens) {
  int pairs = transform.pairs_to_fill_tiles();
  while (pairs * transform.vectors() < kVectorsWorthAWalk && 2 * pairs < tokens && pairs < kMostPairs) pairs *= 2;
  return pairs;
}

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
