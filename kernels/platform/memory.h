// Memory that the kernels own, and pages of others that they are done with.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

namespace hebbline {

// Zeroed memory, aligned to 64 bytes, or from 1 MiB up to 2 MiB and advised to the kernel for huge pages (a decode
// step walks all weights once, and with small pages waits for address translation).
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);

  template <class T = char>
  T* as() {
    return reinterpret_cast<T*>(data_.get());
  }
  template <class T = char>
  const T* as() const {
    return reinterpret_cast<const T*>(data_.get());
  }
  size_t bytes() const { return bytes_; }

 private:
  struct Release {
    Release() : mapped(0) {}
    explicit Release(size_t bytes) : mapped(bytes) {}
    size_t mapped;  // bytes of a mapping of its own; 0: from the allocator
    void operator()(char* data) const;
  };
  std::unique_ptr<char, Release> data_;
  size_t bytes_ = 0;
};

// Memory that a thread keeps for its next call: at least `bytes`, aligned to 64, contents undefined. `slot` keeps
// the uses of one call apart.
enum class Scratch { kActivations, kTransposed, kToken, kCount };
char* scratch(Scratch slot, size_t bytes);

// Lets the operating system drop the whole pages of `data` where they belong to a private mapping of a file: clean
// pages read the same when touched again, from the file. Anything else is left as it is. Returns the bytes advised.
size_t give_back_file_pages(std::span<const char> data);

// Gives freed memory back to the operating system: packing a layer frees several times its size, which the allocator
// would keep for itself.
void give_back_freed_memory();

}  // namespace hebbline
