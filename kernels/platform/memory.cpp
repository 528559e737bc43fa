#include "platform/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <sstream>
#include <string>

namespace hebbline {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kHugeFrom = size_t{1} << 20;
constexpr size_t kLine = 64;

size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

char* map_huge(size_t bytes) {
  void* data = std::aligned_alloc(kHugePage, bytes);
  if (data == nullptr) throw std::bad_alloc();
  madvise(data, bytes, MADV_HUGEPAGE);  // advice: where it is refused, small pages serve
  return static_cast<char*>(data);
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
    // A mapping that cannot be written has no page of its own that dropping would lose.
    mapping.private_file = inode != 0 && permissions[3] == 'p' && permissions[1] == '-';
  }
  return mapping;
}

}  // namespace

void Buffer::Release::operator()(char* data) const { std::free(data); }

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  const size_t padded = round_up(bytes + kLine, bytes >= kHugeFrom ? kHugePage : kLine);
  char* data = nullptr;
  if (bytes >= kHugeFrom) {
    data = map_huge(padded);
  } else {
    data = static_cast<char*>(std::aligned_alloc(kLine, padded));
    if (data == nullptr) throw std::bad_alloc();
  }
  std::memset(data, 0, padded);
  data_.reset(data);
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
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const Mapping mapping = parse_mapping(line);
    if (!mapping.private_file || begin < mapping.begin || end > mapping.end) continue;
    return madvise(reinterpret_cast<void*>(begin), end - begin, MADV_PAGEOUT) == 0 ? end - begin : 0;
  }
  return 0;
}

}  // namespace hebbline
