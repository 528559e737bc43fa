// What Python calls by name.

#include <cstring>
#include <exception>
#include <string>

#include "platform/cpu.h"

// Writes the name of the instruction set that new kernels use into `text`, of `capacity` bytes, and returns 1; where
// HEBBLINE_ISA names what is not there, writes the reason and returns -1.
extern "C" __attribute__((visibility("default"))) int hebbline_isa(char* text, size_t capacity) {
  const auto write = [&](const std::string& what) {
    if (capacity == 0) return;
    const size_t length = what.size() < capacity ? what.size() : capacity - 1;
    std::memcpy(text, what.data(), length);
    text[length] = '\0';
  };
  try {
    write(hebbline::name(hebbline::select_isa()));
    return 1;
  } catch (const std::exception& error) {
    write(error.what());
    return -1;
  }
}
