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

// The same in float16 as a left factor; its words x and z, y and w are the halves, transposed, of a right one.
struct Factor {
  uint4 re, im;
};

__device__ __forceinline__ uint4 float16_factor(const float (&sums)[2][4]) {
  return {float16_pair(sums[0][0], sums[0][1]), float16_pair(sums[0][2], sums[0][3]),
          float16_pair(sums[1][0], sums[1][1]), float16_pair(sums[1][2], sums[1][3])};
}

__device__ __forceinline__ Factor float16_factor(const Sums& sums) {
  return {float16_factor(sums.re), float16_factor(sums.im)};
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
template <bool kInverse>
__device__ __forceinline__ void transform_columns(const Dft16& dft, uint32_t re0, uint32_t re1, uint32_t im0,
                                                  uint32_t im1, float (&re)[4], float (&im)[4]) {
  const uint4 minus_sin = negated(dft.sin);
  multiply_add<false>(re, dft.cos, re0, re1);
  multiply_add<false>(re, kInverse ? minus_sin : dft.sin, im0, im1);
  multiply_add<false>(im, dft.cos, im0, im1);
  multiply_add<false>(im, kInverse ? dft.sin : minus_sin, re0, re1);
}

// sums += transform of the rows of a left factor, or its inverse.
template <bool kInverse>
__device__ __forceinline__ void transform_rows(const Factor& x, const Dft16& dft, Sums& sums) {
  const uint4 minus_sin = negated(dft.sin);
  const uint4 &cos = dft.cos, &to_re = kInverse ? minus_sin : dft.sin, &to_im = kInverse ? dft.sin : minus_sin;
  SURM_UNROLL
  for (int half = 0; half < 2; ++half) {
    multiply_add<false>(sums.re[half], x.re, half ? cos.y : cos.x, half ? cos.w : cos.z);
    multiply_add<false>(sums.re[half], x.im, half ? to_re.y : to_re.x, half ? to_re.w : to_re.z);
    multiply_add<false>(sums.im[half], x.im, half ? cos.y : cos.x, half ? cos.w : cos.z);
    multiply_add<false>(sums.im[half], x.re, half ? to_im.y : to_im.x, half ? to_im.w : to_im.z);
  }
}

// ---- between the outer stage and the core ----

// A complex row of kRadix rows of 256 values in float16, real parts before imaginary ones. A chunk is 8 values, 16
// bytes.
//
// In: chunk c of a row holds values 8c to 8c + 7, of which place i is value exchanged(i). Out: chunk 8w + i holds
// values 64w + i + 8k, place p of it that of column p in the product of the last stage.
template <int kRadix>
class Planes {
 public:
  static constexpr int kChunksOfRow = kCore / 8, kChunks = kRadix * kChunksOfRow;
  static constexpr int kBytes = 2 * kChunks * 16;

  __device__ __forceinline__ explicit Planes(int64_t offset) : offset_(offset) {}

  __device__ __forceinline__ void store(int row, int chunk, const uint4& re, const uint4& im) const {
    const Shared<uint4> to = shared_memory<uint4>(offset_);
    const int at = place(row, chunk);
    to[at] = re;
    to[at + kChunks] = im;
  }

  // Half a chunk.
  __device__ __forceinline__ void store(int row, int chunk, int half, const Words& re, const Words& im) const {
    const Shared<Words> to = shared_memory<Words>(offset_);
    const int at = 2 * place(row, chunk) + half;
    to[at] = re;
    to[at + 2 * kChunks] = im;
  }

  // A row as right factors of the core: words 2h and 2h + 1 of half h.
  __device__ __forceinline__ void load_core(int row, int lane, uint32_t (&re)[4], uint32_t (&im)[4]) const {
    const int matrix = lane / 8, a = exchanged(lane % 8 + 8 * (matrix % 2));
    const Shared<const uint4> from = shared_memory<uint4>(offset_) + place(row, 2 * a + matrix / 2);
    load_matrices<4, true>(from, re);
    load_matrices<4, true>(from + kChunks, im);
  }

  // A chunk of sixteen rows as right factors: words 0 and 1 of the real parts, 2 and 3 of the imaginary ones.
  __device__ __forceinline__ void load_column(int first_row, int chunk, int lane, uint32_t (&words)[4]) const {
    const int matrix = lane / 8, row = first_row + lane % 8 + 8 * (matrix % 2);
    load_matrices<4, true>(shared_memory<uint4>(offset_) + (place(row, chunk) + matrix / 2 * kChunks), words);
  }

  // A chunk of eight rows as a right factor, the real parts above the imaginary ones.
  __device__ __forceinline__ void load_column(int chunk, int lane, uint32_t (&words)[2]) const {
    load_matrices<2, true>(shared_memory<uint4>(offset_) + (place(lane % 8, chunk) + lane / 8 % 2 * kChunks), words);
  }

  // Of a row on its way out: word w of a lane has values 64w + j and its neighbour, j = column_of_lane(lane).
  __device__ __forceinline__ void load_values(int row, int lane, uint32_t (&re)[4], uint32_t (&im)[4]) const {
    const Shared<const uint4> from = shared_memory<uint4>(offset_) + place(row, lane);
    load_matrices<4, true>(from, re);
    load_matrices<4, true>(from + kChunks, im);
  }
  static __device__ __forceinline__ int column_of_lane(int lane) {
    const int place = row_of_lane(lane);
    return 32 * (place & 1) + 8 * (place >> 1) + 2 * pair_of_lane(lane);
  }

 private:
  // Scattered so that lanes that store or load together meet every bank once.
  static __device__ __forceinline__ int place(int row, int chunk) {
    const int reversed = (row & 1) << 2 | (row & 2) | (row >> 2 & 1);
    return row * kChunksOfRow + (chunk ^ reversed ^ (chunk >> 3 & 1) * 5);
  }

  int64_t offset_;
};

// ---- the core ----

template <int kRadix>
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
  __device__ __forceinline__ Sums in(const Planes<kRadix>& planes, int row) const {
    uint32_t re[4], im[4];
    planes.load_core(row, lane_, re, im);
    Sums sums, spectrum;
    SURM_UNROLL
    for (int half = 0; half < 2; ++half) {
      transform_columns<false>(dft_, re[2 * half], re[2 * half + 1], im[2 * half], im[2 * half + 1], sums.re[half],
                               sums.im[half]);
    }
    turn_inner<false>(sums);
    transform_rows<false>(float16_factor(sums), dft_, spectrum);
    return spectrum;
  }

  // The way back: value k of half h is at position core_value(lane, h, k).
  __device__ __forceinline__ Sums out(const Sums& spectrum) const {
    const Factor z = float16_factor(spectrum);
    Sums sums, values;
    transform_columns<true>(dft_, z.re.x, z.re.z, z.im.x, z.im.z, sums.re[0], sums.im[0]);
    transform_columns<true>(dft_, z.re.y, z.re.w, z.im.y, z.im.w, sums.re[1], sums.im[1]);
    turn_inner<true>(sums);
    transform_rows<true>(float16_factor(sums), dft_, values);
    return values;
  }

  // Values on their way out to their row.
  __device__ __forceinline__ void store(const Sums& values, const Planes<kRadix>& planes, int row) const {
    const int g = row_of_lane(lane_), t = pair_of_lane(lane_);
    SURM_UNROLL
    for (int half = 0; half < 2; ++half) {
      const auto words = [](const float (&sums)[4]) {
        return Words{float16_pair(sums[0], sums[1]), float16_pair(sums[2], sums[3])};
      };
      planes.store(row, 16 * half + 8 * (t >> 1) + exchanged(g), t & 1, words(values.re[half]), words(values.im[half]));
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
