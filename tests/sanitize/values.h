// Arrays of any storage type that are read and written as double, tokens made of them, and their errors.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "matrix.h"
#include "shapes.h"

namespace surm::sanitize {

// Copies share their values, each of which is NaN until it is written.
class Array {
 public:
  Array(StorageType type, int64_t count);

  StorageType type() const { return type_; }
  int64_t count() const { return count_; }
  int64_t bytes() const;
  void* data() const { return data_.get(); }
  double at(int64_t i) const;
  void set(int64_t i, double value) const;  // rounded to nearest

  // The matrix of rows × columns values from `first` on, row by row.
  Matrix matrix(int64_t first, int64_t rows, int64_t columns) const;

 private:
  StorageType type_;
  int64_t count_;
  std::shared_ptr<char> data_;
};

// The type that one is computed in.
StorageType compute_type(StorageType type);

// Values from -1 to 1; the same for the same seed, on every machine.
Array random_array(StorageType type, int64_t count, uint64_t seed);

// Rows (groups, tokens, width) with a gap of NaN behind each and a wider one between the groups.
class Tokens {
 public:
  Tokens(StorageType type, int64_t groups, int64_t tokens, int64_t width, uint64_t seed);

  ConstRows rows() const { return {array_.data(), group_stride_, row_stride_}; }
  Matrix of_group(int64_t group) const;

 private:
  int64_t tokens_, width_, row_stride_, group_stride_;
  Array array_;
};

// Throws std::runtime_error that says how far off the array is, if by more than tests/oracle.py allows its type.
void check_error(const std::string& name, const Array& got, const std::vector<double>& exact);

}  // namespace surm::sanitize
