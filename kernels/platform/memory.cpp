#include "platform/memory.h"

#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#include "platform/arithmetic.h"

namespace hebbline {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kHugeFrom = size_t{1} << 20;
constexpr size_t kSharedPages = size_t{32} << 20;  // memory is taken as it is touched, so what is left costs nothing
constexpr size_t kLine = 64;

// `bytes`, a multiple of huge pages, mapped at a multiple of huge pages.
char* map_huge(size_t bytes) {
  const size_t room = bytes + kHugePage;
  void* mapped = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  char* begin = static_cast<char*>(mapped);
  char* data = begin + (round_up(reinterpret_cast<uintptr_t>(begin), kHugePage) - reinterpret_cast<uintptr_t>(begin));
  if (data != begin) munmap(begin, static_cast<size_t>(data - begin));
  if (const size_t tail = static_cast<size_t>(begin + room - (data + bytes)); tail != 0) munmap(data + bytes, tail);
  madvise(data, bytes, MADV_HUGEPAGE);  // advice: where it is refused, small pages serve
  return data;
}

std::shared_ptr<char> map_shared(size_t bytes) {
  return {map_huge(bytes), [bytes](char* data) { munmap(data, bytes); }};
}

struct Mapping {
  uintptr_t begin = 0, end = 0;
  bool private_file = false;
};

// Parses a line of /proc/self/maps: "begin-end perms offset device inode path".
Mapping parse_mapping(const std::string& line) {
  Mapping mapping;
  char permissions[5] = {};
  unsigned long inode = 0;
  if (std::sscanf(line.c_str(), "%lx-%lx %4s %*s %*s %lu", &mapping.begin, &mapping.end, permissions, &inode) == 4) {
    mapping.private_file = inode != 0 && permissions[3] == 'p';
  }
  return mapping;
}

// The mappings of files that are private to the process, read anew where none of those known has what is looked for.
// One that is gone meanwhile does no harm: see give_back_file_pages.
class FileMappings {
 public:
  bool hold(uintptr_t begin, uintptr_t end) {
    const std::lock_guard lock(mutex_);
    if (known_hold(begin, end)) return true;
    known_.clear();
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      const Mapping mapping = parse_mapping(line);
      if (mapping.private_file) known_.push_back(mapping);
    }
    return known_hold(begin, end);
  }

 private:
  bool known_hold(uintptr_t begin, uintptr_t end) const {
    return std::ranges::any_of(known_,
                               [&](const Mapping& mapping) { return mapping.begin <= begin && end <= mapping.end; });
  }

  std::mutex mutex_;
  std::vector<Mapping> known_;
};

}  // namespace

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  if (bytes >= kHugeFrom) {
    data_ = map_shared(round_up(bytes + kLine, kHugePage));
    return;
  }
  const size_t padded = round_up(bytes + kLine, kLine);
  data_ = std::shared_ptr<char>(static_cast<char*>(std::aligned_alloc(kLine, padded)), std::free);
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_.get(), 0, padded);
}

Buffer Buffer::lasting(size_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<char> current;
  static size_t used = 0, size = 0;
  const std::lock_guard lock(mutex);
  const size_t padded = round_up(bytes + kLine, kLine);
  std::shared_ptr<char> pages = current.lock();
  if (pages == nullptr || size - used < padded) {
    size = std::max(kSharedPages, round_up(padded, kHugePage));
    used = 0;
    pages = map_shared(size);
    current = pages;
  }
  Buffer buffer;
  buffer.data_ = std::shared_ptr<char>(pages, pages.get() + used);
  buffer.bytes_ = bytes;
  used += padded;
  return buffer;
}

char* scratch(Scratch slot, size_t bytes) {
  thread_local std::array<Buffer, static_cast<size_t>(Scratch::kCount)> buffers;
  Buffer& buffer = buffers[static_cast<size_t>(slot)];
  if (buffer.bytes() < bytes) buffer = Buffer(round_up(bytes + bytes / 4, kLine));
  return buffer.as();
}

size_t give_back_file_pages(std::span<const char> data) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = round_up(reinterpret_cast<uintptr_t>(data.data()), page);
  const auto end = (reinterpret_cast<uintptr_t>(data.data()) + data.size()) / page * page;
  if (begin >= end) return 0;
  static FileMappings mappings;
  if (!mappings.hold(begin, end)) return 0;
  // Unlike MADV_DONTNEED this never loses a page: one that was written to stays, or goes to swap.
  return madvise(reinterpret_cast<void*>(begin), end - begin, MADV_PAGEOUT) == 0 ? end - begin : 0;
}

void give_back_freed_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

}  // namespace hebbline
