// The shared memory of a thread block: poisoned at the start, with every access checked for bounds, alignment and
// races.
//
// Two accesses of different threads to one byte race if one of them writes and no __syncthreads() lies between. Every
// byte keeps who wrote and who read it last, as a stamp: the number of the interval between two barriers, then the
// number of the thread. Stamps of an interval are larger than all of the intervals before.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

namespace surm::emulator {

using Stamp = uint32_t;

constexpr int kMostThreads = 1024;
constexpr Stamp kInterval = 2 * kMostThreads;  // stamps in an interval: one for each thread, and
constexpr Stamp kSeveral = kInterval - 1;      // one that stands for more than one reader
constexpr Stamp kMostIntervals = ~Stamp{0} / kInterval;

// Says what is wrong with the access of the running thread, and does not return to it.
[[noreturn]] void fail(const std::string& what);

class SharedMemory {
 public:
  // Memory for a new block. Poison: all bits set, which is NaN in every floating-point type.
  void poison(int64_t bytes) {
    bytes_.assign(bytes, 0xff);
    written_.assign(bytes, 0);
    read_.assign(bytes, 0);
    interval_ = kInterval;
  }

  // A barrier was passed.
  void next_interval() {
    if (interval_ / kInterval == kMostIntervals) {
      std::fill(written_.begin(), written_.end(), 0);
      std::fill(read_.begin(), read_.end(), 0);
      interval_ = 0;
    }
    interval_ += kInterval;
  }

  void set_thread(int thread) { thread_ = static_cast<Stamp>(thread); }

  // Not inlined: kernels have so many accesses that the compiler would take minutes.
  template <class T>
  __attribute__((noinline)) T load(int64_t offset) {
    check_place<T>(offset);
    const Stamp mine = interval_ + thread_;
    Stamp *written = &written_[offset], *read = &read_[offset];
    bool races = false;
    for (size_t i = 0; i < sizeof(T); ++i) {
      races |= written[i] >= interval_ && written[i] != mine;
      read[i] = read[i] < interval_ || read[i] == mine ? mine : interval_ + kSeveral;
    }
    if (races) fail(race(offset, sizeof(T), "reads"));
    T value;
    std::memcpy(&value, &bytes_[offset], sizeof(T));
    return value;
  }

  template <class T>
  __attribute__((noinline)) void store(int64_t offset, const T& value) {
    check_place<T>(offset);
    const Stamp mine = interval_ + thread_;
    Stamp *written = &written_[offset], *read = &read_[offset];
    bool races = false;
    for (size_t i = 0; i < sizeof(T); ++i) {
      races |= (written[i] >= interval_ && written[i] != mine) || (read[i] >= interval_ && read[i] != mine);
    }
    if (races) fail(race(offset, sizeof(T), "writes"));
    std::fill_n(written, sizeof(T), mine);
    std::memcpy(&bytes_[offset], &value, sizeof(T));
  }

 private:
  template <class T>
  void check_place(int64_t offset) const {
    static_assert(std::is_trivially_copyable<T>::value, "shared memory holds plain values");
    const int64_t size = static_cast<int64_t>(bytes_.size());
    if (offset < 0 || offset + static_cast<int64_t>(sizeof(T)) > size) {
      fail("access out of bounds: bytes " + std::to_string(offset) + " to " +
           std::to_string(offset + static_cast<int64_t>(sizeof(T)) - 1) + " of " + std::to_string(size) +
           " bytes of shared memory");
    }
    if (offset % alignof(T) != 0) {
      fail("misaligned access: byte " + std::to_string(offset) +
           " of shared memory is no place for a value aligned to " + std::to_string(alignof(T)) + " bytes");
    }
  }

  std::string race(int64_t offset, size_t size, const char* verb) const {
    const Stamp mine = interval_ + thread_;
    const bool writing = verb[0] == 'w';
    for (int64_t byte = offset; byte < offset + static_cast<int64_t>(size); ++byte) {
      const std::string place = " byte " + std::to_string(byte) + " of shared memory";
      if (written_[byte] >= interval_ && written_[byte] != mine) {
        return "race: it " + (verb + place) + ", which thread " + std::to_string(written_[byte] - interval_) + " wrote";
      }
      if (writing && read_[byte] >= interval_ && read_[byte] != mine) {
        const Stamp reader = read_[byte] - interval_;
        return "race: it " + (verb + place) + ", which " +
               (reader == kSeveral ? "other threads" : "thread " + std::to_string(reader)) + " read";
      }
    }
    return "race";
  }

  std::vector<unsigned char> bytes_;
  std::vector<Stamp> written_, read_;
  Stamp interval_ = kInterval;  // the first stamp of this interval
  Stamp thread_ = 0;
};

inline SharedMemory shared;

// One value in shared memory: reading and assigning it are the checked accesses.
template <class T>
class SharedValue {
 public:
  explicit SharedValue(int64_t offset) : offset_(offset) {}
  SharedValue(const SharedValue&) = default;
  operator std::remove_const_t<T>() const { return shared.load<std::remove_const_t<T>>(offset_); }
  const SharedValue& operator=(const T& value) const {
    shared.store<T>(offset_, value);
    return *this;
  }
  const SharedValue& operator=(const SharedValue& other) const { return *this = static_cast<T>(other); }

 private:
  int64_t offset_;
};

// What kernels have instead of T* for shared memory.
template <class T>
class SharedPointer {
 public:
  SharedPointer() = default;
  explicit SharedPointer(int64_t offset) : offset_(offset) {}
  operator SharedPointer<const T>() const { return SharedPointer<const T>(offset_); }
  SharedValue<T> operator[](int64_t i) const { return SharedValue<T>(offset_ + i * kSize); }
  SharedValue<T> operator*() const { return (*this)[0]; }
  SharedPointer operator+(int64_t i) const { return SharedPointer(offset_ + i * kSize); }

 private:
  static constexpr int64_t kSize = sizeof(T);

  int64_t offset_ = 0;  // in bytes, from the start of the block's shared memory
};

}  // namespace surm::emulator
