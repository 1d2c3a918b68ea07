// Matrices in device memory, of which a thread reads and writes a few neighbours of a row at a time.
#pragma once

#include <cstring>

#include "butterflies.h"
#include "storage.cuh"

namespace surm::cuda {

template <class Storage>
struct Matrix {
  Storage* data;
  int64_t stride;  // between rows, in elements
};

// Whether neighbours at any multiple of `count` of any row can be moved 16 bytes at a time.
template <class Element>
bool aligned(const Matrix<Element>& matrix, int count) {
  const int64_t bytes = sizeof(Element);
  return reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 && matrix.stride * bytes % 16 == 0 &&
         count * bytes % 16 == 0;
}

template <int kCount, class Element>
__device__ __forceinline__ void load_neighbours(const Element* from, Element* to) {
  if constexpr (kCount == 1) {
    to[0] = from[0];
  } else {
    uint4 packets[kCount * sizeof(Element) / 16];
    SURM_UNROLL
    for (size_t k = 0; k < sizeof(packets) / 16; ++k) packets[k] = reinterpret_cast<const uint4*>(from)[k];
    memcpy(to, packets, sizeof(packets));
  }
}

template <int kCount, class Element>
__device__ __forceinline__ void store_neighbours(const Element* from, Element* to) {
  if constexpr (kCount == 1) {
    to[0] = from[0];
  } else {
    uint4 packets[kCount * sizeof(Element) / 16];
    memcpy(packets, from, sizeof(packets));
    SURM_UNROLL
    for (size_t k = 0; k < sizeof(packets) / 16; ++k) store_packet(reinterpret_cast<uint4*>(to) + k, packets[k]);
  }
}

}  // namespace surm::cuda
