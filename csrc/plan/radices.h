// The radices with a butterfly written for them (butterflies.h), each with its cost in the choice of plans.
#pragma once

// X(radix, cost). Cycles of the time-stamp counter, only the ratios matter: what a complex vector costs in one stage,
// measured with float32 on AVX-512 with the data in L1.
#define SURM_FOR_RADICES(X) \
  X(2, 2.6)                 \
  X(3, 3.5)                 \
  X(4, 3.3)                 \
  X(5, 4.3)                 \
  X(6, 4.4)                 \
  X(7, 5.4)                 \
  X(8, 4.3)                 \
  X(9, 5.8)                 \
  X(11, 7.8)                \
  X(12, 5.6)                \
  X(13, 9.3)                \
  X(16, 6.0)
