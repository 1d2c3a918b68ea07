// SIMD vectors of one instruction set: GCC vector extensions, in-register transposition, and conversion from and to the
// storage types. Compiled once per instruction set into a namespace of its own.
#pragma once

#include <cstdint>
#include <cstring>

#include "../butterflies.h"
#include "interface.h"

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#ifndef SURM_INSTRUCTION_SET
#error "SURM_INSTRUCTION_SET names the namespace of this instruction set"
#endif

namespace surm::cpu::SURM_INSTRUCTION_SET {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class Scalar>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Scalar));

template <class Element, int kCount>
struct VectorType {
  typedef Element type __attribute__((vector_size(kCount * sizeof(Element))));
};
template <class Element, int kCount = kLanes<Element>>
using Vector = typename VectorType<Element, kCount>::type;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// What each storage type is computed in, and the unsigned integer that holds its bits.
template <class Storage>
struct StorageTraits {
  using Scalar = float;
  using Bits = uint16_t;
};
template <>
struct StorageTraits<float> {
  using Scalar = float;
  using Bits = uint32_t;
};
template <>
struct StorageTraits<double> {
  using Scalar = double;
  using Bits = uint64_t;
};
template <class Storage>
using ComputeType = typename StorageTraits<Storage>::Scalar;

// Calls body with a value of the storage type.
template <class Body>
void with_storage(StorageType type, const Body& body) {
  switch (type) {
    case StorageType::kFloat64:
      return body(double{});
    case StorageType::kFloat32:
      return body(float{});
    case StorageType::kBFloat16:
      return body(BFloat16{});
    case StorageType::kFloat16:
      return body(Float16{});
  }
}

template <class To, class From>
SURM_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits in another type");
  To to{};
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class Vec, class Element>
SURM_INLINE Vec load_as(const Element* from) {
  Vec v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// ---- conversion -----------------------------------------------------------------------------------------------------

SURM_INLINE float float_from_half_bits(uint16_t half) {
  const uint32_t magnitude = half & 0x7fffu;
  const uint32_t sign = (half & 0x8000u) << 16;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude << 13));
  // Scaling by 2^112 moves the exponent bias and normalises subnormals in one exact product.
  const float value = bit_cast<float>(magnitude << 13) * bit_cast<float>(0x77800000u);
  return bit_cast<float>(sign | bit_cast<uint32_t>(value));
}

SURM_INLINE uint16_t half_bits_from_float(float value) {
  uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (bits < 0x38800000u) {                                               // subnormal: a float addition rounds
    return static_cast<uint16_t>(sign | (bit_cast<uint32_t>(bit_cast<float>(bits) + 0.5f) - 0x3f000000u));
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u) >> 13));
}

template <class Storage>
SURM_INLINE Vector<ComputeType<Storage>> load_vector(const Storage* from) {
  using Scalar = ComputeType<Storage>;
  constexpr int kCount = kLanes<Scalar>;
  if constexpr (std::is_same<Storage, Scalar>::value) {
    return load_as<Vector<Scalar>>(from);
  } else if constexpr (std::is_same<Storage, BFloat16>::value) {
    const auto narrow = load_as<Vector<uint16_t, kCount>>(from);
    const Vector<uint32_t> wide = __builtin_convertvector(narrow, Vector<uint32_t>) << 16;
    return (Vector<float>)wide;  // the bits, reinterpreted
  } else {
#if defined(__AVX512F__)  // with a full mask: GCC 12 warns of its own header's unmasked form
    return (Vector<float>)(_mm512_maskz_cvtph_ps(0xffff, load_as<__m256i>(from)));
#elif defined(__F16C__)
    return (Vector<float>)(_mm256_cvtph_ps(load_as<__m128i>(from)));
#else
    Vector<float> v;
    for (int lane = 0; lane < kCount; ++lane) v[lane] = float_from_half_bits(from[lane].bits);
    return v;
#endif
  }
}

template <class Storage>
SURM_INLINE void store_vector(Storage* to, const Vector<ComputeType<Storage>>& value) {
  using Scalar = ComputeType<Storage>;
  constexpr int kCount = kLanes<Scalar>;
  if constexpr (std::is_same<Storage, Scalar>::value) {
    std::memcpy(to, &value, sizeof(value));
  } else if constexpr (std::is_same<Storage, BFloat16>::value) {
    const Vector<uint32_t> bits = (Vector<uint32_t>)value;
    const Vector<uint32_t> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;          // to nearest, ties to even
    const Vector<uint32_t> wide = value == value ? rounded : Vector<uint32_t>{} + 0x7fc0u;  // rounding would lose a NaN
    const auto narrow = __builtin_convertvector(wide, Vector<uint16_t, kCount>);
    std::memcpy(to, &narrow, sizeof(narrow));
  } else {
#if defined(__AVX512F__)
    const __m256i narrow = _mm512_maskz_cvtps_ph(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to, &narrow, sizeof(narrow));
#elif defined(__F16C__)
    const __m128i narrow = _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to, &narrow, sizeof(narrow));
#else
    for (int lane = 0; lane < kCount; ++lane) to[lane].bits = half_bits_from_float(value[lane]);
#endif
  }
}

// The first `count` values of a vector; the rest reads as zero.
template <class Storage>
SURM_INLINE Vector<ComputeType<Storage>> load_partial(const Storage* from, int count) {
  Storage padded[kLanes<ComputeType<Storage>>];
  std::memset(padded, 0, sizeof(padded));
  std::memcpy(padded, from, count * sizeof(Storage));
  return load_vector(padded);
}

template <class Storage>
SURM_INLINE void store_partial(Storage* to, const Vector<ComputeType<Storage>>& value, int count) {
  Storage padded[kLanes<ComputeType<Storage>>];
  store_vector(padded, value);
  std::memcpy(to, padded, count * sizeof(Storage));
}

// ---- transposition --------------------------------------------------------------------------------------------------

namespace detail {

template <int... kIndices, class Vec>
SURM_INLINE Vec shuffle(const Vec& a, const Vec& b, std::integer_sequence<int, kIndices...>) {
  return __builtin_shufflevector(a, b, kIndices...);
}

// Index patterns of the x86 shuffles that cost one instruction, for L lanes in registers with E lanes per 128 bits.
// Interleave pieces of `kPiece` lanes of a and b, low or high half of every 128-bit block (unpcklps, unpckhpd, …).
template <int kPiece, bool kHigh, int E>
constexpr int interleave_index(int lane, int lanes) {
  const int block = lane / E * E, within = lane % E;
  const int source = block + (kHigh ? E / 2 : 0) + within / (2 * kPiece) * kPiece + within % kPiece;
  return (within / kPiece) % 2 == 0 ? source : source + lanes;
}
// Even or odd 128-bit blocks of a, then of b (vshuff32x4 with 0x88 and 0xdd; vperm2f128 for two blocks).
template <bool kOdd, int E>
constexpr int block_index(int lane, int lanes) {
  const int blocks = lanes / E, block = lane / E, within = lane % E;
  const bool from_b = block >= blocks / 2;
  const int source = 2 * (from_b ? block - blocks / 2 : block) + (kOdd ? 1 : 0);
  return source * E + within + (from_b ? lanes : 0);
}

template <int kPiece, bool kHigh, class Vec, int... kLane>
SURM_INLINE Vec interleave(const Vec& a, const Vec& b, std::integer_sequence<int, kLane...>) {
  constexpr int L = sizeof...(kLane), E = L * 16 / static_cast<int>(sizeof(Vec));
  return shuffle(a, b, std::integer_sequence<int, interleave_index<kPiece, kHigh, E>(kLane, L)...>{});
}
template <bool kOdd, class Vec, int... kLane>
SURM_INLINE Vec gather_blocks(const Vec& a, const Vec& b, std::integer_sequence<int, kLane...>) {
  constexpr int L = sizeof...(kLane), E = L * 16 / static_cast<int>(sizeof(Vec));
  return shuffle(a, b, std::integer_sequence<int, block_index<kOdd, E>(kLane, L)...>{});
}

}  // namespace detail

// Lanes in a 128-bit block, and blocks in a vector.
template <class Scalar>
constexpr int kBlockLanes = 16 / static_cast<int>(sizeof(Scalar));
template <class Scalar>
constexpr int kBlocks = kLanes<Scalar> / kBlockLanes<Scalar>;

// Exchanges the blocks of kBlocks vectors: block l of v[g] becomes block g of v[l]. Its own inverse.
template <class Scalar>
SURM_INLINE void transpose_blocks(Vector<Scalar>* v) {
  using Indices = std::make_integer_sequence<int, kLanes<Scalar>>;
  if constexpr (kBlocks<Scalar> == 2) {
    const auto a = detail::gather_blocks<false>(v[0], v[1], Indices{});
    const auto b = detail::gather_blocks<true>(v[0], v[1], Indices{});
    v[0] = a, v[1] = b;
  } else if constexpr (kBlocks<Scalar> == 4) {
    const auto even01 = detail::gather_blocks<false>(v[0], v[1], Indices{});
    const auto odd01 = detail::gather_blocks<true>(v[0], v[1], Indices{});
    const auto even23 = detail::gather_blocks<false>(v[2], v[3], Indices{});
    const auto odd23 = detail::gather_blocks<true>(v[2], v[3], Indices{});
    v[0] = detail::gather_blocks<false>(even01, even23, Indices{});
    v[2] = detail::gather_blocks<true>(even01, even23, Indices{});
    v[1] = detail::gather_blocks<false>(odd01, odd23, Indices{});
    v[3] = detail::gather_blocks<true>(odd01, odd23, Indices{});
  }
}

// Transposes inside every block of kBlockLanes vectors: lane j of v[k] becomes lane k of v[j]. Its own inverse.
template <class Scalar>
SURM_INLINE void transpose_in_blocks(Vector<Scalar>* v) {
  using Indices = std::make_integer_sequence<int, kLanes<Scalar>>;
  if constexpr (kBlockLanes<Scalar> == 2) {
    const auto a = detail::interleave<1, false>(v[0], v[1], Indices{});
    const auto b = detail::interleave<1, true>(v[0], v[1], Indices{});
    v[0] = a, v[1] = b;
  } else {
    const auto low01 = detail::interleave<1, false>(v[0], v[1], Indices{});
    const auto high01 = detail::interleave<1, true>(v[0], v[1], Indices{});
    const auto low23 = detail::interleave<1, false>(v[2], v[3], Indices{});
    const auto high23 = detail::interleave<1, true>(v[2], v[3], Indices{});
    v[0] = detail::interleave<2, false>(low01, low23, Indices{});
    v[1] = detail::interleave<2, true>(low01, low23, Indices{});
    v[2] = detail::interleave<2, false>(high01, high23, Indices{});
    v[3] = detail::interleave<2, true>(high01, high23, Indices{});
  }
}

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
