#include <arm_neon.h>

#include "linear/gated.h"

namespace hebbline::neon {
#include "linear/gated_kernels.inc"
}  // namespace hebbline::neon
