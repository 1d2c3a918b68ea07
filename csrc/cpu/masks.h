// Vectors that are partly filled, by masked loads and stores where the instruction set has them. A count is from 1 to
// the number of lanes.
#pragma once

#include <algorithm>

#include "vector.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

#if defined(__AVX2__) && !defined(__AVX512F__)
// All bits set in the first `count` lanes.
template <class Scalar>
SURM_INLINE __m256i first_lanes(int64_t count) {
  if constexpr (sizeof(Scalar) == 8) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_set_epi64x(3, 2, 1, 0));
  } else {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
  }
}
#endif

// The first `count` values; the other lanes are zero.
template <class Storage>
SURM_INLINE Vector<ComputeType<Storage>> load_first(const Storage* from, int64_t count) {
  if (count == kLanes<ComputeType<Storage>>) return load_vector(from);
#if defined(__AVX512F__)
  const uint32_t mask = (uint32_t{1} << count) - 1;
  if constexpr (sizeof(Storage) == 8) {
    return (Vector<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), from);
  } else if constexpr (sizeof(Storage) == 4) {
    return (Vector<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from);
  } else {
    const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), from);
    return load_vector(reinterpret_cast<const Storage*>(&bits));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(Storage) == 8) return (Vector<double>)_mm256_maskload_pd(from, first_lanes<double>(count));
  if constexpr (sizeof(Storage) == 4) return (Vector<float>)_mm256_maskload_ps(from, first_lanes<float>(count));
#endif
  return load_partial(from, static_cast<int>(count));
}

template <class Storage>
SURM_INLINE void store_first(Storage* to, const Vector<ComputeType<Storage>>& value, int64_t count) {
  if (count == kLanes<ComputeType<Storage>>) return store_vector(to, value);
#if defined(__AVX512F__)
  const uint32_t mask = (uint32_t{1} << count) - 1;
  if constexpr (sizeof(Storage) == 8) {
    return _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask), (__m512d)value);
  } else if constexpr (sizeof(Storage) == 4) {
    return _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), (__m512)value);
  } else {
    __m256i bits;
    store_vector(reinterpret_cast<Storage*>(&bits), value);
    return _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(mask), bits);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(Storage) == 8) return _mm256_maskstore_pd(to, first_lanes<double>(count), (__m256d)value);
  if constexpr (sizeof(Storage) == 4) return _mm256_maskstore_ps(to, first_lanes<float>(count), (__m256)value);
#endif
  store_partial(to, value, static_cast<int>(count));
}

// Calls body(offset, count) for every vector of `length` values; only the last may have fewer than all lanes.
template <class Scalar, class Body>
SURM_INLINE void for_vectors(int64_t length, const Body& body) {
  constexpr int64_t L = kLanes<Scalar>;
  for (int64_t j = 0; j < length; j += L) body(j, std::min<int64_t>(L, length - j));
}

// to[0 … count) = the values in another type.
template <class From, class To>
SURM_INLINE void convert(const From* from, int64_t count, To* to) {
  for_vectors<ComputeType<From>>(count, [&](int64_t j, int64_t n) { store_first(to + j, load_first(from + j, n), n); });
}

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
