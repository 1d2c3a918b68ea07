// What is run on the kernels: every entry of every table (csrc/cpu/instruction_set.h), small problems of awkward sizes.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cpu/interface.h"
#include "values.h"

namespace surm::sanitize {

struct Output {
  std::string name;
  StorageType type;
  std::vector<double> exact;
};

struct Case {
  std::string name;
  std::vector<Output> outputs;
  // Fills one array for each output.
  std::function<void(const std::vector<Array>& arrays, const cpu::ParallelFor& parallel)> fill;
};

// Puts what belongs to the next problem behind what there is.
inline void append(std::vector<double>& all, const Matrix& next) {
  all.insert(all.end(), next.values.begin(), next.values.end());
}

constexpr StorageType kTypes[] = {StorageType::kFloat64, StorageType::kFloat32, StorageType::kBFloat16,
                                  StorageType::kFloat16};

std::vector<Case> grid_cases();
std::vector<Case> ldr_cases();
std::vector<Case> kronecker_cases();
std::vector<Case> elementwise_cases();  // the parts of the diagonal product, and powers

}  // namespace surm::sanitize
