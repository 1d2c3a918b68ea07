// Transforms of rows in shared memory by one block of threads, in place: decimation in frequency on the way in (natural
// order -> digit-reversed), decimation in time on the way out, so that nothing is ever reordered (plan/plan.h).
//
// `count` values are any number of rows of N, one after another: a stage of radix r and stride q works on blocks of r·q
// values, which never straddle rows. Its first stage sees whole rows, so there the block is the row. The last radix,
// kTile, is taken in registers together with what the caller does to the spectrum. Every function ends with a barrier.
//
// A spectrum in the device's memory is stored with its tiles side by side (spectrum_place), so that neighbouring
// threads, which hold neighbouring tiles, access neighbouring values.
#pragma once

#include "plan/radices.h"
#include "plan_tables.cuh"

namespace surm::cuda {

// Where value i is in shared memory: one place in 17 stays empty, so that strides of 16 fall into different banks.
__device__ __forceinline__ int padded(int i) { return i + (i >> 4); }
__host__ __device__ inline int64_t padded_count(int64_t count) { return count + (count >> 4); }

// A tile's place in the spectrum of a row: its value k is at tile + k · tiles_of(N).
__host__ __device__ inline int tiles_of(int length) { return length / kTile; }

template <class Scalar>
__device__ __forceinline__ Complex<Scalar> turned(const Complex<Scalar>& value, const Complex<Scalar>& factor) {
  return multiply<false>(value, factor.re, factor.im);
}
template <class Scalar>
__device__ __forceinline__ Complex<Scalar> turned_back(const Complex<Scalar>& value, const Complex<Scalar>& factor) {
  return multiply<true>(value, factor.re, factor.im);
}

// Reads a spectrum's tile, or writes it; the memory is the device's.
template <class Scalar>
__device__ __forceinline__ void read_tile(const Complex<Scalar>* spectrum, int tile, int tiles, Complex<Scalar>* u) {
  SURM_UNROLL
  for (int k = 0; k < kTile; ++k) u[k] = spectrum[tile + k * tiles];
}
template <class Scalar>
__device__ __forceinline__ void write_tile(const Complex<Scalar>* u, int tile, int tiles, Complex<Scalar>* spectrum) {
  SURM_UNROLL
  for (int k = 0; k < kTile; ++k) spectrum[tile + k * tiles] = u[k];
}

// The same in shared memory, where tiles lie one after another.
template <class Scalar>
__device__ __forceinline__ void read_tile(Shared<Complex<Scalar>> z, int tile, Complex<Scalar>* u) {
  SURM_UNROLL
  for (int k = 0; k < kTile; ++k) u[k] = z[tile * (kTile + 1) + k];
}
template <class Scalar>
__device__ __forceinline__ void write_tile(const Complex<Scalar>* u, int tile, Shared<Complex<Scalar>> z) {
  SURM_UNROLL
  for (int k = 0; k < kTile; ++k) z[tile * (kTile + 1) + k] = u[k];
}

// Values 1 … R - 1 of a butterfly times the twiddle factors of its place j, or their conjugates.
template <int R, bool kConjugate, class Scalar>
__device__ __forceinline__ void turn_all(Complex<Scalar>* u, const TwiddlePair<Scalar>* factors, int stride) {
  SURM_UNROLL
  for (int k = 1; k < R; k += 2) {
    const TwiddlePair<Scalar> pair = factors[k / 2 * stride];
    u[k] = multiply<kConjugate>(u[k], pair.first.re, pair.first.im);
    if (k + 1 < R) u[k + 1] = multiply<kConjugate>(u[k + 1], pair.second.re, pair.second.im);
  }
}

// A stage in. In the first one `enter(row)(value, position in the row)` says what enters for a value.
template <int R, class Scalar, class Enter>
__device__ __forceinline__ void stage_in(const DeviceStage& stage, const TwiddlePair<Scalar>* twiddles,
                                         Shared<Complex<Scalar>> z, int count, bool first, const Enter& enter) {
  const int q = stage.stride, step = padded(q);  // q is a multiple of kTile, so that places are `step` apart too
  for (int i = threadIdx.x; i * R < count; i += blockDim.x) {  // no quotient, which would wait in a register
    const int block = stage.by_stride.quotient(i), j = i - block * q, from = padded(block * R * q + j);
    Complex<Scalar> u[R];
    SURM_UNROLL
    for (int k = 0; k < R; ++k) u[k] = z[from + k * step];
    if (first) {
      const auto entry = enter(block);
      SURM_UNROLL
      for (int k = 0; k < R; ++k) u[k] = entry(u[k], j + k * q);
    }
    Butterfly<R, false>::apply(u);
    turn_all<R, false>(u, twiddles + stage.twiddles + j, q);
    SURM_UNROLL
    for (int k = 0; k < R; ++k) z[from + k * step] = u[k];
  }
}

template <int R, class Scalar>
__device__ __forceinline__ void stage_out(const DeviceStage& stage, const TwiddlePair<Scalar>* twiddles,
                                          Shared<Complex<Scalar>> z, int count) {
  const int q = stage.stride, step = padded(q);  // q is a multiple of kTile, so that places are `step` apart too
  for (int i = threadIdx.x; i * R < count; i += blockDim.x) {  // no quotient, which would wait in a register
    const int block = stage.by_stride.quotient(i), j = i - block * q, from = padded(block * R * q + j);
    Complex<Scalar> u[R];
    SURM_UNROLL
    for (int k = 0; k < R; ++k) u[k] = z[from + k * step];
    turn_all<R, true>(u, twiddles + stage.twiddles + j, q);
    Butterfly<R, true>::apply(u);
    SURM_UNROLL
    for (int k = 0; k < R; ++k) z[from + k * step] = u[k];
  }
}

// Calls body(std::integral_constant<int, radix>). No plan for a GPU has a radix without a butterfly (plan.cpp asserts
// it).
template <class Body>
__device__ __forceinline__ void with_radix(int radix, const Body& body) {
  switch (radix) {
#define SURM_RADIX(radix, cost) \
  case radix:                   \
    return body(std::integral_constant<int, radix>{});
    SURM_FOR_RADICES(SURM_RADIX)
#undef SURM_RADIX
    default:
      __builtin_unreachable();
  }
}

// All stages in but the tile.
template <class Scalar, class Enter>
__device__ __forceinline__ void stages_in(const DevicePlan<Scalar>& plan, Shared<Complex<Scalar>> z, int count,
                                          const Enter& enter) {
  for (int s = 0; s < plan.stage_count; ++s) {
    with_radix(plan.stages[s].radix, [&](auto radix) {
      stage_in<decltype(radix)::value, Scalar>(plan.stages[s], plan.twiddles, z, count, s == 0, enter);
    });
    __syncthreads();
  }
}

// All stages out after the tile.
template <class Scalar>
__device__ __forceinline__ void stages_out(const DevicePlan<Scalar>& plan, Shared<Complex<Scalar>> z, int count) {
  for (int s = plan.stage_count - 1; s >= 0; --s) {
    with_radix(plan.stages[s].radix,
               [&](auto radix) { stage_out<decltype(radix)::value, Scalar>(plan.stages[s], plan.twiddles, z, count); });
    __syncthreads();
  }
}

// The tile in: body(u, tile) gets kTile values of the spectrum; `tile` counts through all rows. A plan without stages
// lets values enter here, where every row is one tile.
template <class Scalar, class Enter, class Body>
__device__ __forceinline__ void tiles_in(const DevicePlan<Scalar>& plan, Shared<Complex<Scalar>> z, int count,
                                         const Enter& enter, const Body& body) {
  for (int tile = threadIdx.x; tile < count / kTile; tile += blockDim.x) {
    Complex<Scalar> u[kTile];
    read_tile(z, tile, u);
    if (plan.stage_count == 0) {
      const auto entry = enter(tile);
      SURM_UNROLL
      for (int k = 0; k < kTile; ++k) u[k] = entry(u[k], k);
    }
    Butterfly<kTile, false>::apply(u);
    body(u, tile);
  }
  __syncthreads();
}

// The tile out: body(u, tile) gives kTile values of the spectrum.
template <class Scalar, class Body>
__device__ __forceinline__ void tiles_out(Shared<Complex<Scalar>> z, int count, const Body& body) {
  for (int tile = threadIdx.x; tile < count / kTile; tile += blockDim.x) {
    Complex<Scalar> u[kTile];
    body(u, tile);
    Butterfly<kTile, true>::apply(u);
    write_tile(u, tile, z);
  }
  __syncthreads();
}

// The tile in and out again, with body(u, tile) changing the spectrum between.
template <class Scalar, class Enter, class Body>
__device__ __forceinline__ void tiles_through(const DevicePlan<Scalar>& plan, Shared<Complex<Scalar>> z, int count,
                                              const Enter& enter, const Body& body) {
  for (int tile = threadIdx.x; tile < count / kTile; tile += blockDim.x) {
    Complex<Scalar> u[kTile];
    read_tile(z, tile, u);
    if (plan.stage_count == 0) {
      const auto entry = enter(tile);
      SURM_UNROLL
      for (int k = 0; k < kTile; ++k) u[k] = entry(u[k], k);
    }
    Butterfly<kTile, false>::apply(u);
    body(u, tile);
    Butterfly<kTile, true>::apply(u);
    write_tile(u, tile, z);
  }
  __syncthreads();
}

}  // namespace surm::cuda
