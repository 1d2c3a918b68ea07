// The shared memory of a thread block: poisoned at the start, with every access checked for bounds, alignment and
// races.
//
// Two accesses of different threads to one byte race if one of them writes and nothing orders them: a __syncthreads()
// between them, or a __syncwarp() where both are of one warp. Every byte keeps who wrote and who read it last, as a
// stamp: the number of the interval between two barriers of the block, that of the interval between two barriers of the
// warp, and the thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

namespace surm::emulator {

constexpr int kMostThreads = 1024, kWarp = 32;

struct Stamp {
  static constexpr uint16_t kSeveralOfWarp = kMostThreads;  // and the number of the warp: more than one of its threads
  static constexpr uint16_t kSeveral = UINT16_MAX;          // threads of more than one warp

  uint32_t interval = 0;  // 0: nobody yet
  uint16_t of_warp = 0;   // the interval of its warp within that; barriers beyond the last one do not count
  uint16_t who = 0;

  int warp() const { return who < kMostThreads ? who / kWarp : who == kSeveral ? -1 : who - kSeveralOfWarp; }
  std::string text() const {
    return who < kMostThreads ? "thread " + std::to_string(who) : warp() < 0 ? "other threads" : "its warp";
  }
};

// Says what is wrong with the access of the running thread, and does not return to it.
[[noreturn]] void fail(const std::string& what);

class SharedMemory {
 public:
  // Memory for a new block. Poison: all bits set, which is NaN in every floating-point type.
  void poison(int64_t bytes) {
    bytes_.assign(bytes, 0xff);
    written_.assign(bytes, {});
    read_.assign(bytes, {});
    interval_ = 0;
    next_interval();
  }

  // A barrier of the block was passed.
  void next_interval() {
    ++interval_;
    std::fill_n(of_warp_, kMostThreads / kWarp, uint16_t{0});
  }

  // A barrier of a warp was passed.
  void next_interval_of_warp(int warp) {
    if (of_warp_[warp] < UINT16_MAX) ++of_warp_[warp];
  }

  void set_thread(int thread) {
    thread_ = static_cast<uint16_t>(thread);
    warp_ = thread / kWarp;
  }

  // Not inlined: kernels have so many accesses that the compiler would take minutes.
  template <class T>
  __attribute__((noinline)) T load(int64_t offset) {
    check_place<T>(offset);
    return read<T>(offset, mine());
  }

  // What a load of the whole warp reads at the address of this thread: no thread's own earlier writes are known to be
  // seen by it.
  template <class T>
  T load_for_warp(int64_t offset) {
    check_place<T>(offset);
    return read<T>(offset, {interval_, of_warp_[warp_], static_cast<uint16_t>(Stamp::kSeveralOfWarp + warp_)});
  }

  template <class T>
  __attribute__((noinline)) void store(int64_t offset, const T& value) {
    check_place<T>(offset);
    const Stamp stamp = mine();
    bool races = false;
    for (size_t i = 0; i < sizeof(T); ++i) {
      races |= races_with(written_[offset + i], stamp) || races_with(read_[offset + i], stamp);
    }
    if (races) fail(race(offset, sizeof(T), stamp, true));
    std::fill_n(&written_[offset], sizeof(T), stamp);
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

  template <class T>
  T read(int64_t offset, const Stamp& stamp) {
    bool races = false;
    for (size_t i = 0; i < sizeof(T); ++i) {
      races |= races_with(written_[offset + i], stamp);
      add_reader(read_[offset + i], stamp);
    }
    if (races) fail(race(offset, sizeof(T), stamp, false));
    T value;
    std::memcpy(&value, &bytes_[offset], sizeof(T));
    return value;
  }

  Stamp mine() const { return {interval_, of_warp_[warp_], thread_}; }

  // Whether nothing orders an earlier access and this one, if one of them writes.
  bool races_with(const Stamp& earlier, const Stamp& now) const {
    if (earlier.interval < now.interval || earlier.who == now.who) return false;
    return earlier.warp() != warp_ || earlier.of_warp == now.of_warp;
  }

  // What is kept of readers is enough to tell whether a later writer races with any of them.
  void add_reader(Stamp& readers, const Stamp& now) const {
    if (!races_with(readers, now)) {
      readers = now;
    } else if (readers.warp() == warp_) {
      readers = {now.interval, now.of_warp, static_cast<uint16_t>(Stamp::kSeveralOfWarp + warp_)};
    } else {
      readers = {now.interval, now.of_warp, Stamp::kSeveral};
    }
  }

  std::string race(int64_t offset, size_t size, const Stamp& now, bool writing) const {
    for (int64_t byte = offset; byte < offset + static_cast<int64_t>(size); ++byte) {
      const std::string place = (writing ? "writes byte " : "reads byte ") + std::to_string(byte) + " of shared memory";
      if (races_with(written_[byte], now)) return "race: it " + place + ", which " + written_[byte].text() + " wrote";
      if (writing && races_with(read_[byte], now)) {
        return "race: it " + place + ", which " + read_[byte].text() + " read";
      }
    }
    return "race";
  }

  std::vector<unsigned char> bytes_;
  std::vector<Stamp> written_, read_;
  uint32_t interval_ = 0;
  uint16_t of_warp_[kMostThreads / kWarp] = {};
  uint16_t thread_ = 0;
  int warp_ = 0;
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
  int64_t offset() const { return offset_; }

 private:
  static constexpr int64_t kSize = sizeof(T);

  int64_t offset_ = 0;  // in bytes, from the start of the block's shared memory
};

}  // namespace surm::emulator
