// Cases of what happens between the matrix products of a diagonal product, chunk by chunk as csrc/diagonal.cpp has it,
// and of powers.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cases.h"
#include "cpu/instruction_set.h"

namespace surm::sanitize {
namespace {

constexpr double kScale = 0.75;

struct Meeting {
  int64_t groups, chunks, tokens, k;  // tokens of a chunk
};

constexpr Meeting kMeetings[] = {{1, 1, 1, 1}, {2, 3, 8, 5}, {1, 7, 13, 64}, {3, 2, 33, 100}, {1, 16, 9, 31}};

Case meeting_case(const Meeting& meeting, StorageType type, uint64_t seed) {
  const auto [groups, chunks, tokens, k] = meeting;
  const int64_t parts = groups * chunks, rows = tokens * k;
  const Array a = random_array(type, parts * rows, seed), b = random_array(type, parts * rows, seed + 1);
  const Array s = random_array(type, groups * k, seed + 2);
  std::vector<double> scaled(parts * rows), sums(groups * k);
  for (int64_t i = 0; i < parts * rows; ++i) {
    const int64_t column = i / (chunks * rows) * k + i % k;
    scaled[i] = kScale * s.at(column) * a.at(i);
    sums[column] += kScale * a.at(i) * b.at(i);
  }
  const auto fill = [=](const std::vector<Array>& arrays, const cpu::ParallelFor& parallel) {
    const cpu::DiagonalKernels& kernels = *cpu::instruction_set().diagonal;
    const Array chunk_sums(compute_type(type), parts * k);
    const auto part_of = [](const Array& array, int64_t part, int64_t all) {
      return static_cast<char*>(array.data()) + part * (array.bytes() / all);
    };
    std::memcpy(arrays[0].data(), a.data(), a.bytes());
    parallel(parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        kernels.meet(type, tokens, k, part_of(arrays[0], part, parts), part_of(b, part, parts),
                     part_of(s, part / chunks, groups), kScale, part_of(chunk_sums, part, parts));
      }
    });
    kernels.add_sums(type, groups, chunks, k, chunk_sums.data(), kScale, arrays[1].data());
  };
  return {"meeting of " + std::to_string(parts * tokens) + " rows of " + std::to_string(k),
          {{"scaled rows", type, scaled}, {"gradient of s", type, sums}},
          fill};
}

Case powers_case(StorageType type, int64_t count, int64_t columns) {
  const Array v = random_array(type, count, 4000 + count);
  const double least = type == StorageType::kFloat64 ? 2.3e-308 : 1.2e-38;
  std::vector<double> w;
  for (int64_t i = 0; i < count * columns; ++i) {
    const double power = std::pow(v.at(i / columns), static_cast<double>(i % columns));
    w.push_back(std::fabs(power) < least ? 0 : power);
  }
  return {"powers of " + std::to_string(count) + " nodes",
          {{"W", type, w}},
          [=](const std::vector<Array>& arrays, const cpu::ParallelFor& parallel) {
            cpu::instruction_set().powers->powers(type, v.data(), count, columns, arrays[0].data(), parallel);
          }};
}

}  // namespace

std::vector<Case> elementwise_cases() {
  std::vector<Case> cases;
  for (const Meeting& meeting : kMeetings) {
    for (const StorageType type : kTypes) cases.push_back(meeting_case(meeting, type, 3000 + cases.size()));
  }
  for (const StorageType type : {StorageType::kFloat64, StorageType::kFloat32}) {
    for (const auto& [count, columns] : {std::pair<int64_t, int64_t>{1, 1}, {33, 7}, {100, 61}}) {
      cases.push_back(powers_case(type, count, columns));
    }
  }
  return cases;
}

}  // namespace surm::sanitize
