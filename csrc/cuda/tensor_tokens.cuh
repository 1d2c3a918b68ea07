// Pairs of tokens of bfloat16 on their way into the matrix unit and out of it. As in rows.cuh every token is brought to
// a magnitude of one by a power of two, here in its own type; one of zeros comes out as zeros, and one that is not
// finite goes in as zeros and comes out as NaN. The partner of a last token without one is that token again, times
// zero.
#pragma once

#include "storage.cuh"
#include "tensor_transform.cuh"

namespace surm::cuda {

// Contiguous tokens of bfloat16; rows begin at multiples of 16 bytes and have a multiple of 8 values, beyond which a
// transform takes zeros.
struct Tokens {
  const uint16_t* data = nullptr;
  int64_t stride = 0;
  int size = 0;
};

// The same number, of which the compiler does not know that: what follows from it is computed anew instead of waiting
// in registers since before a loop.
__device__ __forceinline__ int afresh(int number) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(number));
#endif
  return number;
}

// Which complex row a warp works on, and its part in that.
template <int kRadix>
struct Worker {
  using O = Outer<kRadix>;
  int lane, row, warp;  // of the block, of the row

  __device__ __forceinline__ Worker()
      : lane(threadIdx.x % kLanes),
        row(O::kRowsOfBlock > 1 ? threadIdx.x / kLanes : 0),
        warp(O::kWarps > 1 ? threadIdx.x / kLanes : 0) {
    static_assert(O::kRowsOfBlock == 1 || O::kWarps == 1, "warps of a block count one of the two");
  }

  __device__ __forceinline__ Worker afresh() const {
    Worker worker = *this;
    worker.lane = surm::cuda::afresh(lane);
    worker.warp = surm::cuda::afresh(warp);
    return worker;
  }

  // Orders what the warps of a complex row do with shared memory.
  __device__ __forceinline__ void wait() const {
    if constexpr (O::kWarps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
};

// ---- loading ----

template <int kRadix>
struct Packets {
  uint4 of_token[2][Outer<kRadix>::kPackets];
};

__device__ __forceinline__ uint32_t word_of(const uint4& packet, int i) {
  return i == 0 ? packet.x : i == 1 ? packet.y : i == 2 ? packet.z : packet.w;
}

// Values i of two packets in one word.
__device__ __forceinline__ uint32_t values_of(const uint4& first, const uint4& second, int i) {
  return __byte_perm(word_of(first, i / 2), word_of(second, i / 2), i % 2 == 0 ? 0x5410 : 0x7632);
}

template <int kRadix>
__device__ __forceinline__ Packets<kRadix> load_pair(const Tokens& tokens, int pair, int count,
                                                     const Worker<kRadix>& worker) {
  const Worker<kRadix> me = worker.afresh();
  const int first = Outer<kRadix>::first_packet(me.warp, me.lane);
  Packets<kRadix> packets;
  SURM_UNROLL
  for (int part = 0; part < 2; ++part) {
    const int token = 2 * pair + part < count ? 2 * pair + part : count - 1;
    const uint16_t* from = tokens.data + token * tokens.stride + first;
    SURM_UNROLL
    for (int k = 0; k < Outer<kRadix>::kPackets; ++k) {
      const int behind = Outer<kRadix>::behind_first(k);
      packets.of_token[part][k] = uint4{0, 0, 0, 0};
      if (!Outer<kRadix>::kOnUnit || first + behind < tokens.size) {
        packets.of_token[part][k] = __ldcs(reinterpret_cast<const uint4*>(from + behind));
      }
    }
  }
  return packets;
}

// ---- scales ----

// Magnitudes of bfloat16 order like the integers that encode them, with infinity and NaN on top.
constexpr uint32_t kMantissaBits = 7, kBias = 127, kInfinity = 0x7f80;

// The largest magnitude of each token in this warp: the first token's in the lower half of the word.
template <int kRadix>
__device__ __forceinline__ uint32_t largest_of(const Packets<kRadix>& packets) {
  uint32_t most[2] = {0, 0};
  SURM_UNROLL
  for (int part = 0; part < 2; ++part) {
    SURM_UNROLL
    for (int k = 0; k < Outer<kRadix>::kPackets; ++k) {
      SURM_UNROLL
      for (int i = 0; i < 4; ++i) {
        most[part] = __vmaxu2(most[part], word_of(packets.of_token[part][k], i) & 0x7fff7fffu);
      }
    }
  }
  uint32_t both = __vmaxu2(__byte_perm(most[0], most[1], 0x5410), __byte_perm(most[0], most[1], 0x7632));
  SURM_UNROLL
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    both = __vmaxu2(both, __shfl_xor_sync(0xffffffffu, both, lanes));
  }
  return both;
}

// The largest of all warps that share the row, of kCount words; `memory` has room for one of each warp. A barrier of
// the row lies between what is before and what is after.
template <int kRadix, int kCount>
__device__ __forceinline__ void share_largest(uint32_t (&largest)[kCount], Shared<uint32_t> memory,
                                              const Worker<kRadix>& me) {
  constexpr int kWarps = Outer<kRadix>::kWarps;
  if (kWarps > 1 && me.lane == 0) {
    SURM_UNROLL
    for (int k = 0; k < kCount; ++k) memory[k * kWarps + me.warp] = largest[k];
  }
  me.wait();
  if (kWarps > 1) {
    SURM_UNROLL
    for (int k = 0; k < kCount; ++k) {
      SURM_UNROLL
      for (int warp = 0; warp < kWarps; ++warp) largest[k] = __vmaxu2(largest[k], memory[k * kWarps + warp]);
    }
  }
}

template <int kRadix, int kCount>
constexpr int kLargestBytes = Outer<kRadix>::kWarps > 1 ? 4 * Outer<kRadix>::kWarps * kCount : 0;

// A token's largest magnitude, and what follows from it.
struct Magnitude16 {
  uint32_t bits;

  __device__ __forceinline__ Magnitude16(uint32_t both, int part) : bits(part == 0 ? both & 0xffff : both >> 16) {}

  __device__ __forceinline__ bool finite() const { return bits < kInfinity; }
  __device__ __forceinline__ bool useful() const { return bits != 0 && bits < kInfinity; }

  // The biased exponent, so bounded that it and that of the inverse are of normal numbers.
  __device__ __forceinline__ uint32_t exponent() const {
    const uint32_t exponent = bits >> kMantissaBits;
    return exponent < 1 ? 1 : exponent > 2 * kBias - 1 ? 2 * kBias - 1 : exponent;
  }
  // 2^-exponent as bfloat16, twice in a word; 0 for zeros and what is not finite.
  __device__ __forceinline__ uint32_t in() const {
    return useful() ? (2 * kBias - exponent()) * (0x10001u << kMantissaBits) : 0;
  }
  // 2^exponent; 0 for zeros, NaN for what is not finite.
  __device__ __forceinline__ float out() const {
    return __uint_as_float(!finite() ? 0x7fc00000u : bits == 0 ? 0 : exponent() << 23);
  }
};

// Zeros in the place of a token that is not finite, or that is beyond the last one.
template <int kRadix>
__device__ __forceinline__ void clear_unless_finite(Packets<kRadix>& packets, uint32_t largest) {
  SURM_UNROLL
  for (int part = 0; part < 2; ++part) {
    if (Magnitude16(largest, part).finite()) continue;
    SURM_UNROLL
    for (int k = 0; k < Outer<kRadix>::kPackets; ++k) packets.of_token[part][k] = uint4{0, 0, 0, 0};
  }
}

// ---- storing ----

__device__ __forceinline__ float first_of(uint32_t word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float second_of(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }

// factor · values, plus what is at `base` if that is not null: two values, or eight. Nothing is there unless `inside`.
template <bool kBase>
__device__ __forceinline__ uint32_t result(float first, float second, float factor, uint32_t base) {
  if constexpr (kBase) return bfloat16_pair(factor * first + first_of(base), factor * second + second_of(base));
  return bfloat16_pair(factor * first, factor * second);
}

template <bool kBase>
__device__ __forceinline__ void store_values(uint16_t* to, const uint16_t* base, bool inside, float factor,
                                             const float (&values)[2]) {
  const uint32_t start = kBase && inside ? __ldcs(reinterpret_cast<const uint32_t*>(base)) : 0;
  const uint32_t word = result<kBase>(values[0], values[1], factor, start);
  if (inside) __stcs(reinterpret_cast<uint32_t*>(to), word);
}

template <bool kBase>
__device__ __forceinline__ void store_values(uint16_t* to, const uint16_t* base, bool inside, float factor,
                                             const float (&values)[8]) {
  uint4 start{0, 0, 0, 0};
  if (kBase && inside) start = __ldcs(reinterpret_cast<const uint4*>(base));
  uint32_t words[4];
  SURM_UNROLL
  for (int i = 0; i < 4; ++i) {
    words[i] = result<kBase>(values[2 * i], values[2 * i + 1], factor, word_of(start, i));
  }
  if (inside) __stcs(reinterpret_cast<uint4*>(to), uint4{words[0], words[1], words[2], words[3]});
}

}  // namespace surm::cuda
