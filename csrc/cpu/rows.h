// Pairs of real rows in and out of packed complex rows.
//
// Partners in a pair share their rounding errors, so every row is brought to a magnitude of about one by a power of two
// on the way in (exact) and back on the way out. A row of zeros comes out as zeros. A row that is not finite goes in as
// zeros and comes out as NaN, so that its partner never meets it.
#pragma once

#include <algorithm>
#include <limits>

#include "transform.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

template <class Scalar>
struct RowScale {
  Scalar in = 0;   // multiplies the row going in
  Scalar out = 0;  // 1 / in; 0 for a row of zeros
  bool finite = true;
  bool regular() const { return finite && in != 0; }  // neither zero nor not finite
};

// The largest bit pattern of |row|: unsigned integers order like the magnitudes they encode, NaN and infinity on top.
template <class Storage>
typename StorageTraits<Storage>::Bits largest_magnitude(const Storage* row, int64_t n) {
  using Bits = typename StorageTraits<Storage>::Bits;
  using V = Vector<Bits>;
  constexpr int kCount = kLanes<Bits>;
  constexpr Bits kMask = static_cast<Bits>(~Bits{0}) >> 1;
  V most[4] = {};
  int64_t j = 0;
  for (; j + 4 * kCount <= n; j += 4 * kCount) {
    SURM_UNROLL
    for (int i = 0; i < 4; ++i) {
      const V bits = load_as<V>(row + j + i * kCount) & kMask;
      most[i] = bits > most[i] ? bits : most[i];
    }
  }
  Bits result = 0;
  for (int i = 0; i < 4; ++i) {
    for (int lane = 0; lane < kCount; ++lane) result = std::max(result, static_cast<Bits>(most[i][lane]));
  }
  for (; j < n; ++j) {
    result = std::max(result, static_cast<Bits>(bit_cast<Bits>(row[j]) & kMask));
  }
  return result;
}

template <class Storage>
ComputeType<Storage> value_of_bits(typename StorageTraits<Storage>::Bits bits) {
  const Storage one = bit_cast<Storage>(bits);
  return load_partial(&one, 1)[0];
}

// 2^exponent for exponents of normal numbers.
template <class Scalar>
Scalar power_of_two(int exponent) {
  using Bits = typename StorageTraits<Scalar>::Bits;
  constexpr int kMantissa = std::numeric_limits<Scalar>::digits - 1,
                kBias = std::numeric_limits<Scalar>::max_exponent - 1;
  return bit_cast<Scalar>(static_cast<Bits>(static_cast<Bits>(exponent + kBias) << kMantissa));
}

template <class Storage>
RowScale<ComputeType<Storage>> scale_of_row(const Storage* row, int64_t n) {
  using Scalar = ComputeType<Storage>;
  using Bits = typename StorageTraits<Scalar>::Bits;
  constexpr int kMantissa = std::numeric_limits<Scalar>::digits - 1,
                kBias = std::numeric_limits<Scalar>::max_exponent - 1;
  const Scalar largest = value_of_bits<Storage>(largest_magnitude(row, n));
  RowScale<Scalar> scale;
  if (largest == 0) return scale;
  const int exponent = static_cast<int>(bit_cast<Bits>(largest) >> kMantissa) - kBias;
  scale.finite = exponent <= kBias;
  if (!scale.finite) return scale;
  const int bounded = std::min(std::max(exponent, 1 - kBias), kBias - 1);  // so that both powers are normal numbers
  scale.in = power_of_two<Scalar>(-bounded);
  scale.out = power_of_two<Scalar>(bounded);
  return scale;
}

// z = in0 · row0 + i · in1 · row1, times the twist if there is one, then zeros up to the transform's length.
template <class Storage>
void load_pair(const Transform<ComputeType<Storage>>& transform, int64_t n, const Storage* row0, const Storage* row1,
               ComputeType<Storage> in0, ComputeType<Storage> in1, bool twisted,
               Complex<Vector<ComputeType<Storage>>>* z) {
  using Scalar = ComputeType<Storage>;
  constexpr int L = kLanes<Scalar>;
  const int64_t full = n / L;
  const Vector<Scalar>* twist = transform.twist();
  const auto put = [&](int64_t j, const Vector<Scalar>& re, const Vector<Scalar>& im) SURM_INLINE_LAMBDA {
    const Complex<Vector<Scalar>> value{re * in0, im * in1};
    z[j] = twisted ? multiply<false>(value, twist[2 * j], twist[2 * j + 1]) : value;
  };
  int64_t j = 0;
  for (; j < full; ++j) put(j, load_vector(row0 + j * L), load_vector(row1 + j * L));
  if (n % L != 0) {
    const int rest = static_cast<int>(n % L);
    put(j, load_partial(row0 + j * L, rest), load_partial(row1 + j * L, rest));
    ++j;
  }
  for (; j < transform.vectors(); ++j) z[j] = {Vector<Scalar>{}, Vector<Scalar>{}};
}

// row = base + factor · part of z. Part: 0 real, 1 imaginary, of z times the conjugate of the twist if there is one.
template <int kPart, bool kTwisted, bool kBase, class Storage>
void store_row(const Transform<ComputeType<Storage>>& transform, int64_t n,
               const Complex<Vector<ComputeType<Storage>>>* z, ComputeType<Storage> factor, const Storage* base,
               Storage* row) {
  using Scalar = ComputeType<Storage>;
  constexpr int L = kLanes<Scalar>;
  const int64_t full = n / L;
  const Vector<Scalar>* twist = transform.twist();
  const auto part = [&](int64_t j) {
    const Complex<Vector<Scalar>> value = kTwisted ? multiply<true>(z[j], twist[2 * j], twist[2 * j + 1]) : z[j];
    return (kPart == 0 ? value.re : value.im) * factor;
  };
  for (int64_t j = 0; j < full; ++j) {
    Vector<Scalar> value = part(j);
    if (kBase) value += load_vector(base + j * L);
    store_vector(row + j * L, value);
  }
  if (n % L != 0) {
    const int rest = static_cast<int>(n % L);
    Vector<Scalar> value = part(full);
    if (kBase) value += load_partial(base + full * L, rest);
    store_partial(row + full * L, value, rest);
  }
}

template <int kPart, class Storage>
void store_row(const Transform<ComputeType<Storage>>& transform, int64_t n,
               const Complex<Vector<ComputeType<Storage>>>* z, ComputeType<Storage> factor, bool twisted,
               const Storage* base, Storage* row) {
  if (twisted && base != nullptr) return store_row<kPart, true, true>(transform, n, z, factor, base, row);
  if (twisted) return store_row<kPart, true, false>(transform, n, z, factor, base, row);
  if (base != nullptr) return store_row<kPart, false, true>(transform, n, z, factor, base, row);
  return store_row<kPart, false, false>(transform, n, z, factor, base, row);
}

// What a row gets that was not transformed: base + 0, or NaN.
template <class Storage>
void store_constant(int64_t n, ComputeType<Storage> constant, const Storage* base, Storage* row) {
  using Scalar = ComputeType<Storage>;
  constexpr int L = kLanes<Scalar>;
  for (int64_t j = 0; j < n; j += L) {
    const int count = static_cast<int>(std::min<int64_t>(L, n - j));
    Vector<Scalar> value = Vector<Scalar>{} + constant;
    if (base != nullptr) value += load_partial(base + j, count);
    store_partial(row + j, value, count);
  }
}

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
