// How kernels are given threads.
#pragma once

#include <cstddef>
#include <functional>

namespace hebbline {

// Runs task(0) ... task(count - 1), at the same time where it can.
using Parallel = std::function<void(size_t count, const std::function<void(size_t)>& task)>;

}  // namespace hebbline
