#include <arm_neon.h>

#include "linear/csr.h"

namespace hebbline::neon {
#include "linear/csr_kernels.inc"
}  // namespace hebbline::neon
