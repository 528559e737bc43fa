// Work in parts, on threads of its own: for what Python calls, outside ONNX Runtime and its threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace hebbline {

// task(i) for every i below `count`, on up to `threads` threads. Throws what a task threw first, once all threads are
// done, or std::system_error where there are none to have.
template <typename Task>
void for_each_task(int64_t count, int threads, const Task& task) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  const auto work = [&] {
    try {
      for (int64_t i = next++; i < count && !failed; i = next++) task(i);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    for (int64_t i = 1; i < std::min<int64_t>(threads, count); ++i) others.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace hebbline
