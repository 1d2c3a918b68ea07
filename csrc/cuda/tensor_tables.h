// The tables of a transform on the matrix unit, as tensor_layout.h has them.
#pragma once

#include <cstdint>
#include <vector>

#include "butterflies.h"

namespace surm::cuda {

// Empty where a length has no such transform.
std::vector<Complex<float>> tensor_tables(int64_t length);

}  // namespace surm::cuda
