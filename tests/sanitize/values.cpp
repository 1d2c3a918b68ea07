// Values of the storage types, see values.h. The 16-bit types are taken apart by arithmetic, independently of csrc/.
#include "values.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <stdexcept>
#include <vector>

namespace surm::sanitize {
namespace {

// A 16-bit type: its bits of mantissa, without the leading one, and the exponent of its least normal number.
struct Format {
  int mantissa, least_exponent;
};

constexpr Format kBFloat16{7, -126}, kFloat16{10, -14};

int64_t bytes_of(StorageType type) {
  switch (type) {
    case StorageType::kFloat64:
      return 8;
    case StorageType::kFloat32:
      return 4;
    default:
      return 2;
  }
}

Format format_of(StorageType type) { return type == StorageType::kBFloat16 ? kBFloat16 : kFloat16; }

double value_of_bits(const Format& format, uint16_t bits) {
  const int fraction = bits & ((1 << format.mantissa) - 1), exponent = (bits & 0x7fff) >> format.mantissa;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 0x7fff >> format.mantissa) return fraction != 0 ? std::nan("") : sign * HUGE_VAL;
  const int leading = exponent == 0 ? 0 : 1 << format.mantissa;
  return sign * std::ldexp(leading + fraction, format.least_exponent + std::max(exponent, 1) - 1 - format.mantissa);
}

// To nearest, ties to even; of finite values that do not overflow.
uint16_t bits_of_value(const Format& format, double value) {
  const int exponent = value == 0 ? format.least_exponent : std::max(std::ilogb(value), format.least_exponent);
  const double units = std::nearbyint(std::ldexp(std::fabs(value), format.mantissa - exponent));
  // Units of 2^mantissa and above carry into the exponent by themselves.
  const int bits = ((exponent - format.least_exponent) << format.mantissa) + static_cast<int>(units);
  return static_cast<uint16_t>(bits | (std::signbit(value) ? 0x8000 : 0));
}

double norm(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

double norm_of_difference(const Array& got, const std::vector<double>& exact) {
  std::vector<double> difference(exact.size());
  for (size_t i = 0; i < exact.size(); ++i) difference[i] = got.at(i) - exact[i];
  return norm(difference);
}

// Relative to the exact answer.
double allowed_error(StorageType type, const std::vector<double>& exact) {
  constexpr double kFloat64Tolerance = 1e-14, kFloat32Tolerance = 2e-6, kRoundingFactor = 1.05;
  if (type == StorageType::kFloat64) return kFloat64Tolerance;
  if (type == StorageType::kFloat32) return kFloat32Tolerance;
  const Array rounded(type, exact.size());
  for (size_t i = 0; i < exact.size(); ++i) rounded.set(i, exact[i]);
  return kRoundingFactor * norm_of_difference(rounded, exact) / norm(exact) + kFloat32Tolerance;
}

}  // namespace

Array::Array(StorageType type, int64_t count) : type_(type), count_(count) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, std::max<int64_t>(bytes(), 1)) != 0) throw std::bad_alloc();
  data_.reset(static_cast<char*>(memory), std::free);
  std::memset(memory, 0xff, bytes());
}

int64_t Array::bytes() const { return count_ * bytes_of(type_); }

double Array::at(int64_t i) const {
  if (type_ == StorageType::kFloat64) return static_cast<const double*>(data())[i];
  if (type_ == StorageType::kFloat32) return static_cast<const float*>(data())[i];
  return value_of_bits(format_of(type_), static_cast<const uint16_t*>(data())[i]);
}

void Array::set(int64_t i, double value) const {
  if (type_ == StorageType::kFloat64) {
    static_cast<double*>(data())[i] = value;
  } else if (type_ == StorageType::kFloat32) {
    static_cast<float*>(data())[i] = static_cast<float>(value);
  } else {
    static_cast<uint16_t*>(data())[i] = bits_of_value(format_of(type_), value);
  }
}

Matrix Array::matrix(int64_t first, int64_t rows, int64_t columns) const {
  Matrix matrix(rows, columns);
  for (int64_t i = 0; i < rows * columns; ++i) matrix.values[i] = at(first + i);
  return matrix;
}

StorageType compute_type(StorageType type) {
  return type == StorageType::kFloat64 ? StorageType::kFloat64 : StorageType::kFloat32;
}

Array random_array(StorageType type, int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  const Array array(type, count);
  for (int64_t i = 0; i < count; ++i) array.set(i, std::ldexp(static_cast<double>(random() >> 11), -52) - 1);
  return array;
}

Tokens::Tokens(StorageType type, int64_t groups, int64_t tokens, int64_t width, uint64_t seed)
    : tokens_(tokens),
      width_(width),
      row_stride_(width + 3),
      group_stride_(tokens * row_stride_ + 5),
      array_(type, groups * group_stride_) {
  const Array values = random_array(type, groups * tokens * width, seed);
  for (int64_t i = 0; i < values.count(); ++i) {
    const int64_t token = i / width;
    array_.set(token / tokens * group_stride_ + token % tokens * row_stride_ + i % width, values.at(i));
  }
}

Matrix Tokens::of_group(int64_t group) const {
  Matrix matrix(tokens_, width_);
  for (int64_t t = 0; t < tokens_; ++t) {
    for (int64_t j = 0; j < width_; ++j) matrix(t, j) = array_.at(group * group_stride_ + t * row_stride_ + j);
  }
  return matrix;
}

void check_error(const std::string& name, const Array& got, const std::vector<double>& exact) {
  const double error = norm_of_difference(got, exact) / norm(exact), allowed = allowed_error(got.type(), exact);
  if (error <= allowed) return;
  throw std::runtime_error(name + " is off by " + std::to_string(error / allowed) + " times what is allowed");
}

}  // namespace surm::sanitize
