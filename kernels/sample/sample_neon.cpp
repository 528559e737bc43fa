#include <arm_neon.h>

#include "sample/sample.h"

namespace hebbline::neon {
#include "sample/sample_kernels.inc"
}  // namespace hebbline::neon
