#include <arm_neon.h>

#include "norm/norm.h"

namespace hebbline::neon {
#include "norm/norm_kernels.inc"
}  // namespace hebbline::neon
