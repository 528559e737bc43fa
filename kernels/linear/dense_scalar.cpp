#include <cstdint>
#include <utility>

#include "linear/dense.h"

namespace hebbline::scalar {
#include "linear/dense_kernels.inc"
}  // namespace hebbline::scalar
