// Device memory is read and written at addresses that are multiples of the value's alignment, or the kernel fails.
//
// The compiler can check that where it can check it at all: -fsanitize=alignment puts a call of the function below
// before every access. It takes the place of the sanitizer's library.
#pragma once

#include <cstdint>
#include <string>

#include "block.h"

extern "C" {

struct UbsanTypeMismatch {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log_alignment, kind;
};

inline __attribute__((used)) void __ubsan_handle_type_mismatch_v1(const UbsanTypeMismatch* access, uintptr_t address) {
  surm::emulator::fail("misaligned access: address " + std::to_string(address) +
                       " is no place for a value aligned to " + std::to_string(1 << access->log_alignment) +
                       " bytes at " + access->file + ":" + std::to_string(access->line));
}
}
