// The CPU kernels of the diagonal product as the torch glue sees them: what happens between its matrix products.
#pragma once

#include "interface.h"

namespace surm::cpu {

struct DiagonalKernels {
  // For rows a and b of k values, contiguous: sums (k) = Σ_t a[t] ∘ b[t], then a[t] *= scale · s. Null `sums` leaves
  // out the first and needs no b; null `s` leaves out the second. sums are float64 for float64 and float32 for the
  // rest.
  void (*meet)(StorageType type, int64_t tokens, int64_t k, void* a, const void* b, const void* s, double scale,
               void* sums);
  // gradient (groups, k) = scale · the sums (groups, chunks, k) of the chunks by a fixed tree; `sums` is used up.
  void (*add_sums)(StorageType type, int64_t groups, int64_t chunks, int64_t k, void* sums, double scale,
                   void* gradient);
};

}  // namespace surm::cpu
