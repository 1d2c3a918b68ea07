// Runs the threads of a block as fibers: in random order from one synchronisation to the next, where every thread must
// arrive. What a warp does together (a shuffle, its own barrier, an instruction of the matrix unit) is a meeting of its
// lanes. A mistake of the kernel ends the launch with an Error that says what, who and where.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"
#include "shared_memory.h"

namespace surm::emulator {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Site {
  const char* file;
  int line;

  bool operator==(const Site& other) const { return line == other.line && std::strcmp(file, other.file) == 0; }
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

// What a lane hands to the others of its warp where they meet.
using Operands = std::array<uint32_t, 6>;
using OperandsOfWarp = std::array<Operands, kWarp>;

struct Thread {
  enum State { kReady, kAtBarrier, kAtMeeting, kDone };

  Fiber fiber;
  bool usable = false;  // the fiber waits for a kernel to run; else it has to be started
  State state = kReady;
  Site site{"", 0};          // of the barrier or meeting where it waits
  const char* meeting = "";  // what its warp does there
  Operands operands{};       // what it hands on there
  bool said = false;         // what it says at a barrier, then what any thread said

  std::string text() const {
    if (state == kDone) return "has left the kernel";
    return std::string("waits at the ") + (state == kAtBarrier ? "barrier" : meeting) + " " + site.text();
  }
};

class Block {
 public:
  // Runs `kernel` once for each thread; `set_thread` is told which one runs.
  void run(int threads, int64_t shared_bytes, std::mt19937& random, const std::function<void()>& kernel,
           void (*set_thread)(int)) {
    prepare(threads, shared_bytes, kernel);
    for (;;) {
      std::shuffle(order_.begin(), order_.end(), random);
      for (const int thread : order_) {
        if (threads_[thread]->state == Thread::kReady) run_thread(thread, set_thread);
      }
      if (hold_meetings()) continue;
      if (all_are(Thread::kDone)) return;
      pass_barrier();
    }
  }

  int64_t barriers() const { return barriers_; }

  // What the running thread calls.

  // Whether any thread of the block said so.
  bool wait_at_barrier(Site site, bool said = false) {
    Thread& thread = *threads_[running_];
    thread.said = said;
    wait(Thread::kAtBarrier, site);
    return thread.said;
  }

  // What all lanes of the warp hand on where they meet; good until its next meeting.
  const OperandsOfWarp& meet(Site site, const char* meeting, const Operands& operands) {
    Thread& thread = *threads_[running_];
    const int warp = running_ / kWarp;
    thread.meeting = meeting;
    thread.operands = operands;
    wait(Thread::kAtMeeting, site);
    return handed_on_[warp];
  }

  void wait_at_warp_barrier(Site site) { meet(site, kWarpBarrier, {}); }

  [[noreturn]] void fail_thread(const std::string& what) {
    if (running_ == kNobody) {  // the compiler's check of alignment, outside kernels
      std::fprintf(stderr, "%s\n", what.c_str());
      std::abort();
    }
    failure_ = "thread " + std::to_string(running_) + ": " + what + ", " + since();
    threads_[running_]->usable = false;
    for (;;) threads_[running_]->fiber.suspend();
  }

 private:
  void prepare(int threads, int64_t shared_bytes, const std::function<void()>& kernel) {
    while (static_cast<int>(threads_.size()) < threads) threads_.push_back(std::make_unique<Thread>());
    count_ = threads;
    order_.resize(threads);
    for (int thread = 0; thread < threads; ++thread) {
      order_[thread] = thread;
      threads_[thread]->state = Thread::kReady;
    }
    shared.poison(shared_bytes);
    kernel_ = &kernel;
    barriers_ = 0;
    failure_.clear();
    last_barrier_ = {"", 0};
  }

  void run_thread(int number, void (*set_thread)(int)) {
    Thread& thread = *threads_[number];
    running_ = number;
    set_thread(number);
    shared.set_thread(number);
    if (!thread.usable) {
      thread.usable = true;
      thread.fiber.restart(run_kernels);
    }
    thread.fiber.resume();
    running_ = kNobody;
    if (!failure_.empty()) stop(failure_);
  }

  // What every fiber does: the kernel of a block, then that of the next.
  static void run_kernels();

  void run_kernels_here() {
    for (;;) {
      (*kernel_)();
      wait(Thread::kDone, {"", 0});
    }
  }

  void wait(Thread::State state, Site site) {
    Thread& thread = *threads_[running_];
    thread.state = state;
    thread.site = site;
    thread.fiber.suspend();
  }

  bool all_are(Thread::State state) const {
    for (int thread = 0; thread < count_; ++thread) {
      if (threads_[thread]->state != state) return false;
    }
    return true;
  }

  // Lets every warp go on whose lanes have all come to one meeting; false if there is none.
  bool hold_meetings() {
    bool any = false;
    for (int first = 0; first + kWarp <= count_; first += kWarp) {
      if (!all_have_come(first)) continue;
      const int warp = first / kWarp;
      for (int lane = 0; lane < kWarp; ++lane) {
        handed_on_[warp][lane] = threads_[first + lane]->operands;
        threads_[first + lane]->state = Thread::kReady;
      }
      if (threads_[first]->meeting == kWarpBarrier) shared.next_interval_of_warp(warp);
      any = true;
    }
    return any;
  }

  bool all_have_come(int first) const {
    for (int lane = 0; lane < kWarp; ++lane) {
      const Thread& thread = *threads_[first + lane];
      if (thread.state != Thread::kAtMeeting || !(thread.site == threads_[first]->site)) return false;
    }
    return true;
  }

  // All threads must wait at the same barrier.
  void pass_barrier() {
    const Thread& some = *threads_[order_[0]];
    for (const int number : order_) {
      const Thread& thread = *threads_[number];
      if (thread.state == Thread::kAtMeeting) stop(missing_lane(number));
      if (thread.state != some.state || !(thread.site == some.site)) {
        stop("divergent barrier: thread " + std::to_string(order_[0]) + " " + some.text() + ", thread " +
             std::to_string(number) + " " + thread.text());
      }
    }
    const bool said = std::any_of(order_.begin(), order_.end(), [&](int number) { return threads_[number]->said; });
    for (const int number : order_) {
      threads_[number]->said = said;
      threads_[number]->state = Thread::kReady;
    }
    last_barrier_ = some.site;
    ++barriers_;
    shared.next_interval();
  }

  std::string missing_lane(int waiting) const {
    const Thread& thread = *threads_[waiting];
    const int first = waiting / kWarp * kWarp;
    std::string text = std::string("missing lane in a ") + thread.meeting + ": thread " + std::to_string(waiting) +
                       " " + thread.text() + ", ";
    for (int other = first; other < first + kWarp; ++other) {
      if (other >= count_) return text + "and its warp has fewer than 32 threads";
      if (threads_[other]->state == Thread::kAtMeeting && threads_[other]->site == thread.site) continue;
      return text + "thread " + std::to_string(other) + " of its warp " + threads_[other]->text();
    }
    return text;
  }

  std::string since() const {
    return barriers_ == 0 ? "before the first barrier" : "after the barrier " + last_barrier_.text();
  }

  [[noreturn]] void stop(const std::string& what) {
    for (int thread = 0; thread < count_; ++thread) {
      if (threads_[thread]->state != Thread::kDone) threads_[thread]->usable = false;
    }
    throw Error(what);
  }

  static constexpr int kNobody = -1;
  static constexpr const char* kWarpBarrier = "warp barrier";

  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<int> order_;
  std::array<OperandsOfWarp, kMostThreads / kWarp> handed_on_{};
  const std::function<void()>* kernel_ = nullptr;
  int count_ = 0, running_ = kNobody;
  int64_t barriers_ = 0;
  Site last_barrier_{"", 0};
  std::string failure_;
};

inline Block block;

inline void Block::run_kernels() { block.run_kernels_here(); }

inline void fail(const std::string& what) { block.fail_thread(what); }

}  // namespace surm::emulator
