// Pairs of real rows in and out of packed complex rows in shared memory.
//
// A block of threads takes `pairs` pairs of tokens of one group: tokens 2i and 2i + 1 are the real and imaginary part
// of a complex row for each of the blocks that a row is cut into. Partners in a pair share their rounding errors, so
// every row is brought to a magnitude of about one by a power of two on the way in (exact) and back on the way out. A
// row of zeros comes out as zeros. A row that is not finite goes in as zeros and comes out as NaN.
#pragma once

#include <limits>

#include "storage.cuh"
#include "transform.cuh"

namespace surm::cuda {

constexpr int kWarp = 32, kWarpLog2 = 5;

// ---- values of any storage type ----

template <class Scalar>
__device__ __forceinline__ Scalar load_value(const void* data, StorageType type, int64_t at) {
  if constexpr (sizeof(Scalar) == 8) {
    return static_cast<const double*>(data)[at];
  } else {
    if (type == StorageType::kFloat32) return static_cast<const float*>(data)[at];
    const uint16_t bits = static_cast<const uint16_t*>(data)[at];
    return type == StorageType::kBFloat16 ? bfloat16_to_float(bits) : half_to_float(bits);
  }
}

template <class Scalar>
__device__ __forceinline__ void store_value(void* data, StorageType type, int64_t at, Scalar value) {
  if constexpr (sizeof(Scalar) == 8) {
    static_cast<double*>(data)[at] = value;
  } else {
    if (type == StorageType::kFloat32) {
      static_cast<float*>(data)[at] = value;
    } else {
      static_cast<uint16_t*>(data)[at] =
          type == StorageType::kBFloat16 ? float_to_bfloat16(value) : float_to_half(value);
    }
  }
}

inline int64_t bytes_of(StorageType type) {
  return type == StorageType::kFloat64 ? 8 : type == StorageType::kFloat32 ? 4 : 2;
}

// 16 bytes as they are loaded and stored.
template <class Bits>
union Packet {
  uint4 whole;
  Bits parts[16 / sizeof(Bits)];
};

// kValues neighbouring values: one alone, or what 16 aligned bytes hold.
template <int kValues, class Scalar>
__device__ __forceinline__ void load_values(const void* data, StorageType type, int64_t at, Scalar* values) {
  if constexpr (kValues == 1) {
    values[0] = load_value<Scalar>(data, type, at);
  } else if constexpr (kValues * sizeof(Scalar) == 16) {
    Packet<Scalar> packet;
    packet.whole = load_packet_once(reinterpret_cast<const uint4*>(static_cast<const Scalar*>(data) + at));
    SURM_UNROLL
    for (int k = 0; k < kValues; ++k) values[k] = packet.parts[k];
  } else {
    Packet<uint16_t> packet;
    packet.whole = load_packet_once(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(data) + at));
    SURM_UNROLL
    for (int k = 0; k < kValues; ++k) {
      values[k] = type == StorageType::kBFloat16 ? bfloat16_to_float(packet.parts[k]) : half_to_float(packet.parts[k]);
    }
  }
}

template <int kValues, class Scalar>
__device__ __forceinline__ void store_values(void* data, StorageType type, int64_t at, const Scalar* values) {
  if constexpr (kValues == 1) {
    store_value<Scalar>(data, type, at, values[0]);
  } else if constexpr (kValues * sizeof(Scalar) == 16) {
    Packet<Scalar> packet;
    SURM_UNROLL
    for (int k = 0; k < kValues; ++k) packet.parts[k] = values[k];
    *reinterpret_cast<uint4*>(static_cast<Scalar*>(data) + at) = packet.whole;
  } else {
    Packet<uint16_t> packet;
    SURM_UNROLL
    for (int k = 0; k < kValues; ++k) {
      packet.parts[k] = type == StorageType::kBFloat16 ? float_to_bfloat16(values[k]) : float_to_half(values[k]);
    }
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(data) + at) = packet.whole;
  }
}

// ---- scales ----

template <class Scalar>
struct alignas(2 * sizeof(Scalar)) RowScale {
  Scalar in;   // multiplies the row going in; 0 for a row of zeros and for one that is not finite
  Scalar out;  // 1 / in; 0 for a row of zeros, NaN for one that is not finite
};

// Magnitudes as unsigned integers, which order like the numbers they encode, with infinity and NaN on top.
template <class Scalar>
struct Magnitude;
template <>
struct Magnitude<float> {
  using Bits = unsigned int;
  static constexpr int kMantissa = 23, kBias = 127;
};
template <>
struct Magnitude<double> {
  using Bits = unsigned long long;
  static constexpr int kMantissa = 52, kBias = 1023;
};

template <class Scalar>
union Encoded {
  Scalar value;
  typename Magnitude<Scalar>::Bits bits;
};

template <class Scalar>
__device__ __forceinline__ typename Magnitude<Scalar>::Bits magnitude(Scalar value) {
  using Bits = typename Magnitude<Scalar>::Bits;
  Encoded<Scalar> encoded;
  encoded.value = value;
  return encoded.bits & (~Bits{0} >> 1);
}

template <class Scalar>
__device__ __forceinline__ RowScale<Scalar> scale_of(typename Magnitude<Scalar>::Bits largest) {
  using M = Magnitude<Scalar>;
  using Bits = typename M::Bits;
  if (largest == 0) return {0, 0};
  const int exponent = static_cast<int>(largest >> M::kMantissa);
  if (exponent > 2 * M::kBias) return {0, std::numeric_limits<Scalar>::quiet_NaN()};
  // Biased exponents of the two powers, so bounded that both are normal numbers.
  const int bounded = exponent < 1 ? 1 : exponent > 2 * M::kBias - 1 ? 2 * M::kBias - 1 : exponent;
  Encoded<Scalar> in, out;
  in.bits = static_cast<Bits>(2 * M::kBias - bounded) << M::kMantissa;
  out.bits = static_cast<Bits>(bounded) << M::kMantissa;
  return {in.value, out.value};
}

// Each row of a packed value times its factor.
template <class Scalar>
__device__ __forceinline__ Complex<Scalar> scaled(const Complex<Scalar>& value, Scalar first, Scalar second) {
  return {value.re * first, value.im * second};
}

// What enters of a packed row: each of its two rows times its factor, the whole times the twist if there is one.
template <class Scalar>
struct Entry {
  Scalar first, second;
  const Complex<Scalar>* twist;  // of `size` values, the rest are zeros; null: none
  int size;

  __device__ __forceinline__ Complex<Scalar> operator()(const Complex<Scalar>& value, int position) const {
    const Complex<Scalar> row = scaled(value, first, second);
    return twist != nullptr && position < size ? turned(row, twist[position]) : row;
  }
};

// ---- rows ----

// Rows of a tensor (groups, tokens, blocks · size) and how kernels may access them.
struct Rows {
  char* data = nullptr;
  int64_t group_stride = 0, row_stride = 0;  // in bytes
  int blocks = 0, size = 0;                  // a row is `blocks` blocks of `size` values
  Divisor by_size;
  StorageType type = StorageType::kFloat32;
  bool aligned = false;  // to 16 bytes at every 16 bytes of a block

  Rows() = default;
  Rows(const ConstRows& rows, StorageType storage, int64_t row_blocks, int64_t block_size)
      : data(static_cast<char*>(const_cast<void*>(rows.data))),
        group_stride(rows.group_stride * bytes_of(storage)),
        row_stride(rows.row_stride * bytes_of(storage)),
        blocks(static_cast<int>(row_blocks)),
        size(static_cast<int>(block_size)),
        by_size(block_size),
        type(storage),
        aligned((reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(group_stride) |
                 static_cast<uintptr_t>(row_stride) | static_cast<uintptr_t>(block_size * bytes_of(storage))) %
                    16 ==
                0) {}

  int width() const { return blocks * size; }
};

// Contiguous rows of a result.
inline Rows result_rows(void* data, StorageType type, int64_t tokens, int64_t blocks, int64_t size) {
  return {{data, tokens * blocks * size, blocks * size}, type, blocks, size};
}

// The token pairs of a block of threads, and which of its warps work on one of them together.
struct PairRange {
  int group;
  int first;   // token of the first pair
  int tokens;  // of the group
  int pairs;
  int warps_log2;  // of the warps that a pair has to itself

  __device__ __forceinline__ int warps_of_pair() const { return 1 << warps_log2; }

  // Calls body(pair, index of this thread among those of the pair, their number).
  template <class Body>
  __device__ __forceinline__ void for_pairs(const Body& body) const {
    const int step = kWarp << warps_log2, index = threadIdx.x & (step - 1);
    const int shift = kWarpLog2 + warps_log2;
    for (int pair = threadIdx.x >> shift; pair < pairs; pair += blockDim.x >> shift) body(pair, index, step);
  }

  // A row of the pair, or null past the last token.
  __device__ __forceinline__ char* row(const Rows& rows, int pair, int part) const {
    const int token = first + 2 * pair + part;
    return token < tokens ? rows.data + group * rows.group_stride + token * rows.row_stride : nullptr;
  }
};

// Shared memory in which the scales of rows are found: a place for every warp and row, then the scales.
template <class Scalar>
struct ScaleMemory {
  Shared<typename Magnitude<Scalar>::Bits> largest;
  Shared<RowScale<Scalar>> scales;

  __device__ __forceinline__ ScaleMemory(int64_t offset, int pairs)
      : largest(shared_memory<typename Magnitude<Scalar>::Bits>(offset)),
        scales(shared_memory<RowScale<Scalar>>(offset + largest_bytes(blockDim.x, pairs))) {}

  __host__ __device__ static int64_t largest_bytes(int threads, int pairs) {
    const int warps = threads / kWarp > pairs ? threads / kWarp : pairs;
    return (2 * warps * static_cast<int64_t>(sizeof(Scalar)) + 15) / 16 * 16;
  }
  __host__ __device__ static int64_t bytes(int threads, int pairs) {
    return largest_bytes(threads, pairs) + 2 * pairs * static_cast<int64_t>(sizeof(RowScale<Scalar>));
  }
};

template <int kValues, class Scalar>
__device__ __forceinline__ void load_pair(const Rows& rows, const char* row0, const char* row1, int index, int step,
                                          int start, int length, Shared<Complex<Scalar>> z,
                                          typename Magnitude<Scalar>::Bits (&most)[2]) {
  for (int at = index * kValues; at < rows.blocks * rows.size; at += step * kValues) {
    Scalar values[2][kValues] = {};
    if (row0 != nullptr) load_values<kValues>(row0, rows.type, at, values[0]);
    if (row1 != nullptr) load_values<kValues>(row1, rows.type, at, values[1]);
    const int block = rows.blocks == 1 ? 0 : rows.by_size.quotient(at);
    const int to = padded(start + block * length + at - block * rows.size);  // as are its neighbours in a tile
    SURM_UNROLL
    for (int k = 0; k < kValues; ++k) {
      z[to + k] = Complex<Scalar>{values[0][k], values[1][k]};
      for (int part = 0; part < 2; ++part) {
        const auto bits = magnitude(values[part][k]);
        most[part] = bits > most[part] ? bits : most[part];
      }
    }
  }
}

// Puts zeros in the place of rows that are not finite, `length` values each.
template <class Scalar>
__device__ void clear_rows_not_finite(const PairRange& range, int length, Shared<Complex<Scalar>> z,
                                      const ScaleMemory<Scalar>& memory) {
  range.for_pairs([&](int pair, int index, int step) {
    const RowScale<Scalar> first = memory.scales[2 * pair], second = memory.scales[2 * pair + 1];
    for (int at = index; at < length; at += step) {
      const Complex<Scalar> value = z[padded(pair * length + at)];
      z[padded(pair * length + at)] =
          Complex<Scalar>{first.out == first.out ? value.re : 0, second.out == second.out ? value.im : 0};
    }
  });
}

// Loads the rows, block q of pair i to row i · blocks + q of z, with zeros up to its length and for rows that are not
// finite, else as they are, and finds their scales: two a pair. Ends with a barrier.
template <class Scalar>
__device__ void load_rows(const Rows& rows, const PairRange& range, int length, Shared<Complex<Scalar>> z,
                          const ScaleMemory<Scalar>& memory) {
  using Bits = typename Magnitude<Scalar>::Bits;
  const int together = range.warps_of_pair();
  range.for_pairs([&](int pair, int index, int step) {
    const char *row0 = range.row(rows, pair, 0), *row1 = range.row(rows, pair, 1);
    const int start = pair * rows.blocks * length;
    Bits most[2] = {0, 0};
    if (!rows.aligned) {
      load_pair<1>(rows, row0, row1, index, step, start, length, z, most);
    } else if (sizeof(Scalar) == 8 || rows.type == StorageType::kFloat32) {
      load_pair<16 / sizeof(Scalar)>(rows, row0, row1, index, step, start, length, z, most);
    } else if constexpr (sizeof(Scalar) == 4) {
      load_pair<8>(rows, row0, row1, index, step, start, length, z, most);
    }
    for (int part = 0; part < 2; ++part) {
      for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        const Bits other = __shfl_xor_sync(0xffffffffu, most[part], offset);
        most[part] = other > most[part] ? other : most[part];
      }
      if (index % kWarp == 0) memory.largest[(2 * pair + part) * together + index / kWarp] = most[part];
    }
  });
  const int padding = length - rows.size;
  if (padding > 0) {
    for (int row = 0; row < range.pairs * rows.blocks; ++row) {
      for (int i = threadIdx.x; i < padding; i += blockDim.x) {
        z[padded(row * length + rows.size + i)] = Complex<Scalar>{0, 0};
      }
    }
  }
  __syncthreads();
  bool finite = true;
  for (int row = threadIdx.x; row < 2 * range.pairs; row += blockDim.x) {
    Bits most = 0;
    for (int i = 0; i < together; ++i) {
      const Bits bits = memory.largest[row * together + i];
      most = bits > most ? bits : most;
    }
    const RowScale<Scalar> scale = scale_of<Scalar>(most);
    memory.scales[row] = scale;
    finite = finite && scale.out == scale.out;
  }
  if (__syncthreads_or(!finite)) {
    clear_rows_not_finite(range, rows.blocks * length, z, memory);
    __syncthreads();
  }
}

// What is written: block `block` of the rows of a pair from row `pair` of z.
template <class Scalar>
struct Store {
  Rows rows;  // of the result
  Rows base;  // null data: none
  Scalar scale;
  bool conjugate;                // the second row is minus the imaginary part
  const Complex<Scalar>* twist;  // null: none; else its conjugate multiplies z
};

template <int kValues, class Scalar>
__device__ __forceinline__ void store_pair(const Store<Scalar>& to, char* const (&row)[2], char* const (&base)[2],
                                           const Scalar (&factor)[2], int block, int index, int step, int from,
                                           Shared<Complex<Scalar>> z) {
  for (int at = index * kValues; at < to.rows.size; at += step * kValues) {
    const int64_t column = static_cast<int64_t>(block) * to.rows.size + at;
    const int place = padded(from + at);  // as are its neighbours in a tile
    Scalar values[2][kValues], start[2][kValues] = {};
    SURM_UNROLL
    for (int k = 0; k < kValues; ++k) {
      Complex<Scalar> value = z[place + k];
      if (to.twist != nullptr) value = turned_back(value, to.twist[at + k]);
      values[0][k] = value.re;
      values[1][k] = value.im;
    }
    for (int part = 0; part < 2; ++part) {
      if (row[part] == nullptr) continue;
      if (base[part] != nullptr) load_values<kValues>(base[part], to.base.type, column, start[part]);
      SURM_UNROLL
      for (int k = 0; k < kValues; ++k) values[part][k] = start[part][k] + factor[part] * values[part][k];
      store_values<kValues>(row[part], to.rows.type, column, values[part]);
    }
  }
}

// Writes block `block` of every pair, base + scale · value, from z. Ends with a barrier.
template <class Scalar>
__device__ void store_rows(const Store<Scalar>& to, const PairRange& range, int block, int length,
                           Shared<Complex<Scalar>> z, const ScaleMemory<Scalar>& memory) {
  const bool aligned = to.rows.aligned && (to.base.data == nullptr || to.base.aligned);
  range.for_pairs([&](int pair, int index, int step) {
    char *row[2], *base[2];
    Scalar factor[2];
    for (int part = 0; part < 2; ++part) {
      row[part] = range.row(to.rows, pair, part);
      base[part] = to.base.data != nullptr ? range.row(to.base, pair, part) : nullptr;
      const RowScale<Scalar> scale = memory.scales[2 * pair + part];
      factor[part] = (part == 1 && to.conjugate ? -to.scale : to.scale) * scale.out;
    }
    if (!aligned) {
      store_pair<1>(to, row, base, factor, block, index, step, pair * length, z);
    } else if (sizeof(Scalar) == 8 || to.rows.type == StorageType::kFloat32) {
      store_pair<16 / sizeof(Scalar)>(to, row, base, factor, block, index, step, pair * length, z);
    } else if constexpr (sizeof(Scalar) == 4) {
      store_pair<8>(to, row, base, factor, block, index, step, pair * length, z);
    }
  });
  __syncthreads();
}

}  // namespace surm::cuda
