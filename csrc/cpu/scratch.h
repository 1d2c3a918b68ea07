// Aligned memory, and the working memory that a thread keeps between calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "vector.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

// Cache-line aligned memory without construction.
template <class Element>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) : data_(allocate(count)) {}
  Element* data() const { return data_.get(); }
  Element& operator[](size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(Element* p) const { std::free(p); }
  };
  static Element* allocate(size_t count) {
    const size_t bytes = (count * sizeof(Element) + 63) / 64 * 64;
    void* p = std::aligned_alloc(64, bytes == 0 ? 64 : bytes);
    if (p == nullptr) throw std::bad_alloc();
    return static_cast<Element*>(p);
  }
  std::unique_ptr<Element, Free> data_;
};

// Working memory that a thread keeps between calls: fresh pages cost more than the transforms that use them.
class Scratch {
 public:
  template <class Element>
  struct Request {
    Element** where;
    int64_t count;
  };
  template <class... Elements>
  static void take(Request<Elements>... requests) {
    thread_local Buffer<char> memory;
    thread_local size_t size = 0;
    const size_t bytes = (padded(requests) + ...);
    if (bytes > size) {
      memory = Buffer<char>(bytes);
      size = bytes;
    }
    char* at = memory.data();
    ((*requests.where = reinterpret_cast<Elements*>(at), at += padded(requests)), ...);
  }

 private:
  // An odd number of lines more: arrays of a power of two must not all begin in the same set of L1.
  template <class Element>
  static size_t padded(const Request<Element>& request) {
    return (request.count * sizeof(Element) + 63) / 64 * 64 + 1088;
  }
};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
