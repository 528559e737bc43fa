#include <arm_neon.h>

#include <cstdint>
#include <utility>

#include "linear/dense.h"

namespace hebbline::neon {
#include "linear/dense_kernels.inc"
}  // namespace hebbline::neon
