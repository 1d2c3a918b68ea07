// The tables of a transform on the matrix unit, as tensor_layout.h has them.
#pragma once

#include <cstdint>
#include <vector>

#include "butterflies.h"

namespace surm::cuda {

// Of a circulant matrix or, twisted, of a skew-circulant one. Empty where a length has no such transform.
std::vector<Complex<float>> tensor_tables(int64_t length, bool twisted);

}  // namespace surm::cuda
