// Fibers: functions that stop in their middle and are resumed there, all in one thread of the system. ucontext starts
// them; setjmp and longjmp switch between them, which, unlike swapcontext, need no system call.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <new>

namespace surm::emulator {

class Fiber {
 public:
  Fiber() : memory_(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory_, kGuard, PROT_NONE);  // so that a stack that overflows is noticed
  }
  ~Fiber() { munmap(memory_, kBytes); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Gets ready to call `entry`, which never returns, from its beginning; what the fiber was in the middle of is
  // dropped.
  void restart(void (*entry)()) {
    getcontext(&start_);
    start_.uc_stack.ss_sp = static_cast<char*>(memory_) + kGuard;
    start_.uc_stack.ss_size = kBytes - kGuard;
    start_.uc_link = nullptr;
    makecontext(&start_, entry, 0);
    started_ = false;
  }

  // Runs the fiber until it calls suspend().
  __attribute__((noinline)) void resume() {
    if (_setjmp(resumer_) != 0) return;
    if (started_) _longjmp(inside_, 1);
    started_ = true;
    setcontext(&start_);
  }

  // Called inside the fiber: goes back to where resume() was called.
  __attribute__((noinline)) void suspend() {
    if (_setjmp(inside_) == 0) _longjmp(resumer_, 1);
  }

 private:
  static constexpr size_t kGuard = 64 << 10, kBytes = kGuard + (128 << 10);

  void* memory_;
  ucontext_t start_;
  jmp_buf inside_, resumer_;
  bool started_ = false;
};

}  // namespace surm::emulator
