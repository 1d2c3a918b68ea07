// Pairs of tokens of 16 bits on their way into the matrix unit and out of it. As in rows.cuh every token is brought to
// a magnitude of one by a power of two, here in its own type; one of zeros comes out as zeros, and one that is not
// finite goes in as zeros and comes out as NaN. The partner of a last token without one is that token again, times
// zero.
#pragma once

#include "storage.cuh"
#include "tensor_transform.cuh"

namespace surm::cuda {

// Contiguous tokens; rows begin at multiples of 16 bytes and have a multiple of 8 values, beyond which a
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

// ---- types ----

// What the type of tokens decides. Magnitudes order like the integers that encode them, with infinity and NaN on top.
template <class Token>
struct TokenType;

template <>
struct TokenType<BFloat16> {
  static constexpr bool kIsBFloat16 = true;
  static constexpr int kTerms = 1;        // of float16, whose sum is a value between the stages
  static constexpr int kMatrixTerms = 2;  // whose sum is the matrix that takes tokens in
  static constexpr uint32_t kMantissaBits = 7, kInfinity = 0x7f80;
  static constexpr int kLift = 0;  // subnormal tokens are first multiplied by 2^kLift: their inverse is too large
  static constexpr int kOne = 0;   // tokens are brought to a magnitude of 2^kOne

  static __device__ __forceinline__ float first(uint32_t word) { return __uint_as_float(word << 16); }
  static __device__ __forceinline__ float second(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }
  static __device__ __forceinline__ uint32_t pair(float a, float b) { return bfloat16_pair(a, b); }
  static __device__ __forceinline__ uint32_t multiply(uint32_t a, uint32_t b) { return multiply_bfloat16(a, b); }
  // 2^exponent twice in a word; 0 for what is no normal number.
  static __device__ __forceinline__ uint32_t power(int exponent) {
    return exponent < -126 ? 0 : (exponent + 127) * (0x10001u << 7);
  }
};

// Its rounding is so small that values between the stages are split in two, and that the matrix in float16 that takes
// values out takes tokens in as well. That one is scaled, so tokens are brought to a half, which leaves it room.
template <>
struct TokenType<Float16> {
  static constexpr bool kIsBFloat16 = false;
  static constexpr int kTerms = 2, kMatrixTerms = 1;
  static constexpr uint32_t kMantissaBits = 10, kInfinity = 0x7c00;
  static constexpr int kLift = 10, kOne = -1;

  static __device__ __forceinline__ float first(uint32_t word) { return half_to_float(word & 0xffff); }
  static __device__ __forceinline__ float second(uint32_t word) { return half_to_float(word >> 16); }
  static __device__ __forceinline__ uint32_t pair(float a, float b) { return float16_pair(a, b); }
  static __device__ __forceinline__ uint32_t multiply(uint32_t a, uint32_t b) { return multiply_float16(a, b); }
  // The same, subnormal numbers included.
  static __device__ __forceinline__ uint32_t power(int exponent) {
    const int field = exponent + 15;
    return 0x10001u * (field > 0 ? field << 10 : field > -10 ? 0x0200 >> -field : 0);
  }
};

// ---- scales ----

constexpr int kBias = 127;  // of float32

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
template <class Token>
struct Magnitude16 {
  using Type = TokenType<Token>;
  uint32_t bits;

  __device__ __forceinline__ Magnitude16(uint32_t both, int part) : bits(part == 0 ? both & 0xffff : both >> 16) {}

  __device__ __forceinline__ bool finite() const { return bits < Type::kInfinity; }
  __device__ __forceinline__ bool useful() const { return bits != 0 && finite(); }
  __device__ __forceinline__ bool lifted() const { return Type::kLift != 0 && bits >> Type::kMantissaBits == 0; }

  // The exponent as float32 has it, biased, so bounded that it and that of the inverse are of normal numbers.
  __device__ __forceinline__ int exponent() const {
    const int exponent = static_cast<int>(__float_as_uint(Type::first(bits)) >> 23);
    return exponent < 1 ? 1 : exponent > 2 * kBias - 1 ? 2 * kBias - 1 : exponent;
  }
  // What brings it to 2^-below, in its type and twice in a word; 0 for zeros and what is not finite.
  __device__ __forceinline__ uint32_t in(int below = 0) const {
    const int power = kBias - exponent() + Type::kOne - below - (lifted() ? Type::kLift : 0);
    return useful() ? Type::power(power) : 0;
  }
  // The inverse of in(); 0 for zeros, NaN for what is not finite.
  __device__ __forceinline__ float out() const {
    const auto power = static_cast<uint32_t>(exponent() - Type::kOne);
    return __uint_as_float(!finite() ? 0x7fc00000u : bits == 0 ? 0 : power << 23);
  }
};

// Zeros in the place of a token that is not finite; one of subnormal numbers lifted.
template <class Token, int kRadix>
__device__ __forceinline__ void clear_or_lift(Packets<kRadix>& packets, uint32_t largest) {
  using Type = TokenType<Token>;
  SURM_UNROLL
  for (int part = 0; part < 2; ++part) {
    const Magnitude16<Token> magnitude(largest, part);
    if (magnitude.finite() && !magnitude.lifted()) continue;
    const uint32_t kept = magnitude.finite() ? 0xffffffffu : 0;
    const auto changed = [&](uint32_t word) { return Type::multiply(word & kept, Type::power(Type::kLift)); };
    SURM_UNROLL
    for (int k = 0; k < Outer<kRadix>::kPackets; ++k) {
      uint4& packet = packets.of_token[part][k];
      packet = {changed(packet.x), changed(packet.y), changed(packet.z), changed(packet.w)};
    }
  }
}

// ---- storing ----

// factor · values, plus what is at `base` if that is not null: two values, or eight. Nothing is there unless `inside`.
template <class Token, bool kBase>
__device__ __forceinline__ uint32_t result(float first, float second, float factor, uint32_t base) {
  using Type = TokenType<Token>;
  if constexpr (kBase) return Type::pair(factor * first + Type::first(base), factor * second + Type::second(base));
  return Type::pair(factor * first, factor * second);
}

template <class Token, bool kBase>
__device__ __forceinline__ void store_values(uint16_t* to, const uint16_t* base, bool inside, float factor,
                                             const float (&values)[2]) {
  const uint32_t start = kBase && inside ? __ldcs(reinterpret_cast<const uint32_t*>(base)) : 0;
  const uint32_t word = result<Token, kBase>(values[0], values[1], factor, start);
  if (inside) __stcs(reinterpret_cast<uint32_t*>(to), word);
}

template <class Token, bool kBase>
__device__ __forceinline__ void store_values(uint16_t* to, const uint16_t* base, bool inside, float factor,
                                             const float (&values)[8]) {
  uint4 start{0, 0, 0, 0};
  if (kBase && inside) start = __ldcs(reinterpret_cast<const uint4*>(base));
  uint32_t words[4];
  SURM_UNROLL
  for (int i = 0; i < 4; ++i) {
    words[i] = result<Token, kBase>(values[2 * i], values[2 * i + 1], factor, word_of(start, i));
  }
  if (inside) __stcs(reinterpret_cast<uint4*>(to), uint4{words[0], words[1], words[2], words[3]});
}

}  // namespace surm::cuda
