// The values of a parameter laid out in a vector (plan/block_kinds.h), and the adjoint.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "../plan/block_kinds.h"
#include "masks.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

template <class Value>
void turn_signs(Value* values, int64_t count) {
  using Bits = typename StorageTraits<Value>::Bits;
  constexpr Bits kSign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  for (int64_t k = 0; k < count; ++k) {
    values[k] = bit_cast<Value>(static_cast<Bits>(bit_cast<Bits>(values[k]) ^ kSign));
  }
}

// to[0 … length) = the values as the layout has them.
template <class From, class To>
void embed(const Layout& layout, const From* values, int64_t length, To* to) {
  int64_t covered = 0;
  for (const Segment& segment : layout.segments) covered += segment.length();
  if (covered < length) std::fill(to, to + length, To{});
  for (const Segment& segment : layout.segments) {
    To *first = to + segment.begin, *last = to + segment.end;
    if constexpr (std::is_same<From, To>::value) {
      std::copy_n(values + segment.lowest(), segment.length(), first);  // to the bit
    } else {
      convert(values + segment.lowest(), segment.length(), first);
    }
    if (segment.step < 0) std::reverse(first, last);
    if (segment.sign < 0) turn_signs(first, segment.length());
  }
}

// The adjoint: each value is the sum of where it lies, with its signs.
template <class Scalar, class To>
void unembed(const Layout& layout, const Scalar* from, To* values) {
  constexpr int64_t kPiece = 256;
  for (int64_t first = 0; first < layout.count; first += kPiece) {
    Scalar sums[kPiece];
    const int64_t last = std::min(layout.count, first + kPiece);
    std::fill(sums, sums + kPiece, Scalar{-0.0});  // which adding anything to changes nothing
    for (const Segment& segment : layout.segments) {
      const int64_t lowest = segment.lowest();
      const int64_t begin = std::max(first, lowest), end = std::min(last, lowest + segment.length());
      const auto sign = static_cast<Scalar>(segment.sign);
      if (segment.step > 0) {
        const Scalar* at = from + segment.begin - lowest;
        for (int64_t k = begin; k < end; ++k) sums[k - first] += sign * at[k];
      } else {
        const Scalar* at = from + segment.begin + segment.start;
        for (int64_t k = begin; k < end; ++k) sums[k - first] += sign * at[-k];
      }
    }
    convert(sums, last - first, values + first);
  }
}

// The same for a gradient, which is NaN if a token was not finite.
template <class Scalar, class To>
void unembed(const Layout& layout, const Scalar* from, bool finite, To* gradient) {
  if (finite) return unembed(layout, from, gradient);
  const auto nans = Vector<Scalar>{} + std::numeric_limits<Scalar>::quiet_NaN();
  for_vectors<Scalar>(layout.count, [&](int64_t j, int64_t n) { store_first(gradient + j, nans, n); });
}

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
