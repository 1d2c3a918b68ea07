// The matrix unit of a multiprocessor as a warp uses it, and words of two values of 16 bits.
//
// Lane 4g + t of a warp holds, as PTX has it for mma.m16n8k16,
//   of a left factor 16 × 16, in words x, y, z, w: rows g, g + 8, g, g + 8; columns 2t and 2t + 1, in z and w 8 more;
//   of a right factor 16 × 8, in two words: column g; rows 2t and 2t + 1, in the second one 8 more;
//   of the sums 16 × 8: row g, columns 2t and 2t + 1, then the same of row g + 8.
// The lower half of a word is the earlier value. The tests compile kernels against tests/emulator/matrix_unit.h.
#pragma once

#include "device.cuh"

#if defined(__CUDACC__)

// Older devices have none of this; the launchers do not start such a kernel there.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define SURM_MATRIX_UNIT(...) asm(__VA_ARGS__)
#else
#define SURM_MATRIX_UNIT(...) __trap()
#endif

namespace surm::cuda {

// sums += left · right, of bfloat16 or float16, in float32.
template <bool kBFloat16>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint4& left, uint32_t right0, uint32_t right1) {
#define SURM_MULTIPLY_ADD(type)                                                                                      \
  SURM_MATRIX_UNIT("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                            \
                   ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(sums[0]),           \
                   "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) : "r"(left.x), "r"(left.y), "r"(left.z), "r"(left.w), \
                   "r"(right0), "r"(right1))
  if constexpr (kBFloat16) {
    SURM_MULTIPLY_ADD("bf16");
  } else {
    SURM_MULTIPLY_ADD("f16");
  }
#undef SURM_MULTIPLY_ADD
}

// The same in float16 of eight columns: words x and y of a left factor, the first one of a right factor.
__device__ __forceinline__ void multiply_add(float (&sums)[4], uint32_t left0, uint32_t left1, uint32_t right) {
  SURM_MATRIX_UNIT(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};" : "+f"(sums[0]),
      "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) : "r"(left0), "r"(left1), "r"(right));
}

// kCount matrices of 8 × 8 values: lane 8m + i names row i of matrix m. Word m gets row g, columns 2t and 2t + 1 of
// matrix m, as in a left factor; transposed, column g, rows 2t and 2t + 1, as in a right one.
template <int kCount, bool kTransposed>
__device__ __forceinline__ void load_matrices(Shared<const uint4> row, uint32_t (&words)[kCount]) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4, "as ldmatrix has it");
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
#define SURM_LOAD_MATRICES(count, order, places, from, ...)                                      \
  asm volatile("ldmatrix.sync.aligned.m8n8." count order ".shared.b16 {" places "}, [" from "];" \
               : __VA_ARGS__                                                                     \
               : "r"(at)                                                                         \
               : "memory")
#define SURM_LOAD_IN_ORDER(order)                                                                           \
  if constexpr (kCount == 1) {                                                                              \
    SURM_LOAD_MATRICES("x1", order, "%0", "%1", "=r"(words[0]));                                            \
  } else if constexpr (kCount == 2) {                                                                       \
    SURM_LOAD_MATRICES("x2", order, "%0, %1", "%2", "=r"(words[0]), "=r"(words[1]));                        \
  } else {                                                                                                  \
    SURM_LOAD_MATRICES("x4", order, "%0, %1, %2, %3", "%4", "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), \
                       "=r"(words[3]));                                                                     \
  }
  if constexpr (kTransposed) {
    SURM_LOAD_IN_ORDER(".trans")
  } else {
    SURM_LOAD_IN_ORDER("")
  }
#undef SURM_LOAD_IN_ORDER
#undef SURM_LOAD_MATRICES
}

__device__ __forceinline__ uint32_t float16_pair(float first, float second) {
  uint32_t word = 0;
  SURM_MATRIX_UNIT("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

__device__ __forceinline__ uint32_t bfloat16_pair(float first, float second) {
  uint32_t word = 0;
  SURM_MATRIX_UNIT("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

// Both products of two words of bfloat16. sm_80 has the sum alone, whose -0 changes nothing.
__device__ __forceinline__ uint32_t multiply_bfloat16(uint32_t a, uint32_t b) {
  uint32_t word = 0;
  SURM_MATRIX_UNIT("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(0x80008000u));
  return word;
}

// The same of float16.
__device__ __forceinline__ uint32_t multiply_float16(uint32_t a, uint32_t b) {
  uint32_t word = 0;
  SURM_MATRIX_UNIT("mul.rn.f16x2 %0, %1, %2;" : "=r"(word) : "r"(a), "r"(b));
  return word;
}

}  // namespace surm::cuda

#else
#include "matrix_unit.h"
#endif
