// Transforms of 256 complex values in the registers of a warp, on the matrix unit, and the shared memory between them
// and the outer stage. Two tokens are one complex row, as in rows.cuh.
//
// With x[16a + b] as a matrix, the transform is F x, times w_256^(r b), times F, for the 16-point transform F: value
// (r, c) of the result is frequency r + 16 c. Factors are float16, sums float32; what is rounded between the two
// products has a magnitude for which float16 has room (docs/gpu-kernels.md). The way back takes the sums of the way in,
// rounded, as its right factor, so that nothing is ever moved between lanes.
#pragma once

#include "matrix_unit.cuh"
#include "plan_tables.cuh"
#include "tensor_layout.h"

namespace surm::cuda {

// 8 bytes at a time.
struct alignas(8) Words {
  uint32_t first, second;
};

// Two complex numbers of a table at a time, of this lane.
using TurnPair = TwiddlePair<float>;

// A complex 16 × 16 matrix in sums: halves of 8 columns.
struct Sums {
  float re[2][4] = {}, im[2][4] = {};
};

// The same as the sum of kTerms left factors of float16; words x and z, y and w of each are the halves, transposed, of
// a right one.
template <int kTerms>
struct Factor {
  uint4 re[kTerms], im[kTerms];
};

// -1 as a right factor of 8 × 8.
__device__ __forceinline__ uint32_t minus_one() {
  const int lane = threadIdx.x % kLanes, beside = row_of_lane(lane) - 2 * pair_of_lane(lane);
  return beside == 0 ? 0xbc00u : beside == 1 ? 0xbc000000u : 0;
}

// Four values of this lane in float16, then what that leaves of them, which the matrix unit finds.
template <int kTerms>
__device__ __forceinline__ void float16_terms(const float (&values)[4], Words (&terms)[kTerms]) {
  float left[4] = {values[0], values[1], values[2], values[3]};
  SURM_UNROLL
  for (int term = 0; term < kTerms; ++term) {
    terms[term] = {float16_pair(left[0], left[1]), float16_pair(left[2], left[3])};
    if (term + 1 < kTerms) multiply_add(left, terms[term].first, terms[term].second, minus_one());
  }
}

template <int kTerms>
__device__ __forceinline__ void float16_factor(const float (&sums)[2][4], uint4 (&factor)[kTerms]) {
  Words halves[2][kTerms];
  float16_terms(sums[0], halves[0]);
  float16_terms(sums[1], halves[1]);
  SURM_UNROLL
  for (int term = 0; term < kTerms; ++term) {
    factor[term] = {halves[0][term].first, halves[0][term].second, halves[1][term].first, halves[1][term].second};
  }
}

template <int kTerms>
__device__ __forceinline__ Factor<kTerms> float16_factor(const Sums& sums) {
  Factor<kTerms> factor;
  float16_factor(sums.re, factor.re);
  float16_factor(sums.im, factor.im);
  return factor;
}

// Both values of a word, or of every word, times -1.
__device__ __forceinline__ uint32_t negated(uint32_t word) { return word ^ 0x80008000u; }
__device__ __forceinline__ uint4 negated(const uint4& factor) {
  return {negated(factor.x), negated(factor.y), negated(factor.z), negated(factor.w)};
}

template <bool kConjugate>
__device__ __forceinline__ void turn(float& re, float& im, const Complex<float>& factor) {
  const Complex<float> turned = multiply<kConjugate>(Complex<float>{re, im}, factor.re, factor.im);
  re = turned.re;
  im = turned.im;
}

// Every value times its factor in a table of the core, or the conjugate; `table` is that of this lane.
template <bool kConjugate>
__device__ __forceinline__ void turn(Sums& sums, const TurnPair* table) {
  SURM_UNROLL
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    const TurnPair factors = table[quarter * kLanes];
    const int half = quarter / 2, k = quarter % 2 * 2;
    turn<kConjugate>(sums.re[half][k], sums.im[half][k], factors.first);
    turn<kConjugate>(sums.re[half][k + 1], sums.im[half][k + 1], factors.second);
  }
}

// ---- the 16-point transform ----

struct Dft16 {
  uint4 cos, sin;  // a left factor; symmetric, so a right one as well
};

// (re, im) += transform of the columns of a right factor, or its inverse.
template <bool kInverse, bool kBFloat16 = false>
__device__ __forceinline__ void transform_columns(const Dft16& dft, uint32_t re0, uint32_t re1, uint32_t im0,
                                                  uint32_t im1, float (&re)[4], float (&im)[4]) {
  const uint4 minus_sin = negated(dft.sin);
  multiply_add<kBFloat16>(re, dft.cos, re0, re1);
  multiply_add<kBFloat16>(re, kInverse ? minus_sin : dft.sin, im0, im1);
  multiply_add<kBFloat16>(im, dft.cos, im0, im1);
  multiply_add<kBFloat16>(im, kInverse ? dft.sin : minus_sin, re0, re1);
}

// sums += transform of the rows of a left factor, or its inverse.
template <bool kInverse, int kTerms>
__device__ __forceinline__ void transform_rows(const Factor<kTerms>& x, const Dft16& dft, Sums& sums) {
  const uint4 minus_sin = negated(dft.sin);
  const uint4 &cos = dft.cos, &to_re = kInverse ? minus_sin : dft.sin, &to_im = kInverse ? dft.sin : minus_sin;
  SURM_UNROLL
  for (int half = 0; half < 2; ++half) {
    SURM_UNROLL
    for (int term = 0; term < kTerms; ++term) {
      multiply_add<false>(sums.re[half], x.re[term], half ? cos.y : cos.x, half ? cos.w : cos.z);
      multiply_add<false>(sums.re[half], x.im[term], half ? to_re.y : to_re.x, half ? to_re.w : to_re.z);
      multiply_add<false>(sums.im[half], x.im[term], half ? cos.y : cos.x, half ? cos.w : cos.z);
      multiply_add<false>(sums.im[half], x.re[term], half ? to_im.y : to_im.x, half ? to_im.w : to_im.z);
    }
  }
}

// ---- between the outer stage and the core ----

// A complex row of kRadix rows of 256 values, of each term in float16 the real parts before the imaginary ones. A chunk
// is 8 values, 16 bytes.
//
// In: chunk c of a row holds values 8c to 8c + 7, of which place i is value exchanged(i). Out: chunk 8w + i holds
// values 64w + i + 8k, place p of it that of column p in the product of the last stage.
template <int kRadix, int kTerms>
class Planes {
 public:
  static constexpr int kChunksOfRow = kCore / 8, kChunks = kRadix * kChunksOfRow;
  static constexpr int kBytes = 2 * kTerms * kChunks * 16;

  __device__ __forceinline__ explicit Planes(int64_t offset) : offset_(offset) {}

  __device__ __forceinline__ void store(int row, int chunk, const Factor<kTerms>& values) const {
    const Shared<uint4> to = shared_memory<uint4>(offset_) + place(row, chunk);
    SURM_UNROLL
    for (int term = 0; term < kTerms; ++term) {
      to[2 * term * kChunks] = values.re[term];
      to[(2 * term + 1) * kChunks] = values.im[term];
    }
  }

  // Half a chunk.
  __device__ __forceinline__ void store(int row, int chunk, int half, const Words (&re)[kTerms],
                                        const Words (&im)[kTerms]) const {
    const Shared<Words> to = shared_memory<Words>(offset_) + (2 * place(row, chunk) + half);
    SURM_UNROLL
    for (int term = 0; term < kTerms; ++term) {
      to[4 * term * kChunks] = re[term];
      to[(4 * term + 2) * kChunks] = im[term];
    }
  }

  // A row as right factors of the core: words 2h and 2h + 1 of half h.
  __device__ __forceinline__ void load_core(int row, int lane, uint32_t (&re)[kTerms][4],
                                            uint32_t (&im)[kTerms][4]) const {
    const int matrix = lane / 8, a = exchanged(lane % 8 + 8 * (matrix % 2));
    load_parts(place(row, 2 * a + matrix / 2), re, im);
  }

  // A chunk of sixteen rows as right factors: words 0 and 1 of the real parts, 2 and 3 of the imaginary ones.
  __device__ __forceinline__ void load_column(int first_row, int chunk, int lane, uint32_t (&words)[kTerms][4]) const {
    const int matrix = lane / 8, row = first_row + lane % 8 + 8 * (matrix % 2);
    load_terms(place(row, chunk) + matrix / 2 * kChunks, words);
  }

  // A chunk of eight rows as a right factor, the real parts above the imaginary ones.
  __device__ __forceinline__ void load_column(int chunk, int lane, uint32_t (&words)[kTerms][2]) const {
    load_terms(place(lane % 8, chunk) + lane / 8 % 2 * kChunks, words);
  }

  // Of a row on its way out: word w of a lane has values 64w + j and its neighbour, j = column_of_lane(lane).
  __device__ __forceinline__ void load_values(int row, int lane, uint32_t (&re)[kTerms][4],
                                              uint32_t (&im)[kTerms][4]) const {
    load_parts(place(row, lane), re, im);
  }
  static __device__ __forceinline__ int column_of_lane(int lane) {
    const int place = row_of_lane(lane);
    return 32 * (place & 1) + 8 * (place >> 1) + 2 * pair_of_lane(lane);
  }

 private:
  // Of every term the matrices whose rows begin at these places of the first one.
  template <int kCount>
  __device__ __forceinline__ void load_terms(int at, uint32_t (&words)[kTerms][kCount]) const {
    const Shared<const uint4> from = shared_memory<uint4>(offset_) + at;
    SURM_UNROLL
    for (int term = 0; term < kTerms; ++term) load_matrices<kCount, true>(from + 2 * term * kChunks, words[term]);
  }
  __device__ __forceinline__ void load_parts(int at, uint32_t (&re)[kTerms][4], uint32_t (&im)[kTerms][4]) const {
    load_terms(at, re);
    load_terms(at + kChunks, im);
  }

  // Scattered so that lanes that store or load together meet every bank once.
  static __device__ __forceinline__ int place(int row, int chunk) {
    const int reversed = (row & 1) << 2 | (row & 2) | (row >> 2 & 1);
    return row * kChunksOfRow + (chunk ^ reversed ^ (chunk >> 3 & 1) * 5);
  }

  int64_t offset_;
};

// ---- the core ----

template <int kRadix, int kTerms>
class Core {
 public:
  __device__ __forceinline__ Core(const TurnPair* tables, int lane) : lane_(lane) {
    using Tables = TensorTables<kRadix>;
    const uint4* matrices = reinterpret_cast<const uint4*>(tables + Tables::kMatrices) + lane;
    dft_ = {matrices[kCoreCos * kLanes], matrices[kCoreSin * kLanes]};
    SURM_UNROLL
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      inner_[quarter] = tables[Tables::kInner + quarter * kLanes + lane];
    }
  }

  // The spectrum of a row: value k of half h is frequency core_value(lane, h, k).
  __device__ __forceinline__ Sums in(const Planes<kRadix, kTerms>& planes, int row) const {
    uint32_t re[kTerms][4], im[kTerms][4];
    planes.load_core(row, lane_, re, im);
    Sums sums, spectrum;
    SURM_UNROLL
    for (int half = 0; half < 2; ++half) {
      SURM_UNROLL
      for (int term = 0; term < kTerms; ++term) {
        transform_columns<false>(dft_, re[term][2 * half], re[term][2 * half + 1], im[term][2 * half],
                                 im[term][2 * half + 1], sums.re[half], sums.im[half]);
      }
    }
    turn_inner<false>(sums);
    transform_rows<false>(float16_factor<kTerms>(sums), dft_, spectrum);
    return spectrum;
  }

  // The way back: value k of half h is at position core_value(lane, h, k).
  __device__ __forceinline__ Sums out(const Sums& spectrum) const {
    const Factor<kTerms> factor = float16_factor<kTerms>(spectrum);
    Sums sums, values;
    SURM_UNROLL
    for (int term = 0; term < kTerms; ++term) {
      const uint4 &re = factor.re[term], &im = factor.im[term];
      transform_columns<true>(dft_, re.x, re.z, im.x, im.z, sums.re[0], sums.im[0]);
      transform_columns<true>(dft_, re.y, re.w, im.y, im.w, sums.re[1], sums.im[1]);
    }
    turn_inner<true>(sums);
    transform_rows<true>(float16_factor<kTerms>(sums), dft_, values);
    return values;
  }

  // Values on their way out to their row.
  __device__ __forceinline__ void store(const Sums& values, const Planes<kRadix, kTerms>& planes, int row) const {
    const int g = row_of_lane(lane_), t = pair_of_lane(lane_);
    SURM_UNROLL
    for (int half = 0; half < 2; ++half) {
      Words re[kTerms], im[kTerms];
      float16_terms(values.re[half], re);
      float16_terms(values.im[half], im);
      planes.store(row, 16 * half + 8 * (t >> 1) + exchanged(g), t & 1, re, im);
    }
  }

 private:
  template <bool kConjugate>
  __device__ __forceinline__ void turn_inner(Sums& sums) const {
    SURM_UNROLL
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      const int half = quarter / 2, k = quarter % 2 * 2;
      turn<kConjugate>(sums.re[half][k], sums.im[half][k], inner_[quarter].first);
      turn<kConjugate>(sums.re[half][k + 1], sums.im[half][k + 1], inner_[quarter].second);
    }
  }

  int lane_;
  Dft16 dft_;
  TurnPair inner_[kQuarters];
};

}  // namespace surm::cuda
