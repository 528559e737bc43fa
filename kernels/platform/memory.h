// Memory that the kernels own, and pages of others that they are done with.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

namespace hebbline {

// Zeroed memory, aligned to 64 bytes, or from 1 MiB up to 2 MiB and advised to the kernel for huge pages (a decode
// step walks all weights once, and with small pages waits for address translation).
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);

  // For what stays: a part of huge pages that all such buffers of the process share, so that small ones have them too.
  // The pages go back to the operating system with the last buffer that has a part of them.
  static Buffer lasting(size_t bytes);

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
  std::shared_ptr<char> data_;
  size_t bytes_ = 0;
};

// A lasting copy of `items`.
template <class T>
Buffer buffer_of(const std::vector<T>& items) {
  Buffer buffer = Buffer::lasting(items.size() * sizeof(T));
  if (!items.empty()) std::memcpy(buffer.as(), items.data(), items.size() * sizeof(T));
  return buffer;
}

// Memory that a thread keeps for its next call: at least `bytes`, aligned to 64, contents undefined. `slot` keeps
// the uses of one call apart.
enum class Scratch {
  kActivations,
  kTransposed,
  kToken,
  kStack,
  kPart,
  kRotated,
  kPartial,
  kWorkspace,
  kCount,
};
char* scratch(Scratch slot, size_t bytes);

// Lets the operating system drop the whole pages of `data` where they belong to a private mapping of a file: clean
// pages read the same when touched again, from the file. Anything else is left as it is. Returns the bytes advised.
size_t give_back_file_pages(std::span<const char> data);

// Gives freed memory back to the operating system: packing a layer frees several times its size, which the allocator
// would keep for itself.
void give_back_freed_memory();

}  // namespace hebbline
