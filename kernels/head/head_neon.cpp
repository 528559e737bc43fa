#include <arm_neon.h>

#include "head/head.h"

namespace hebbline::neon {
#include "head/head_floats.inc"
#include "head/head_int8.inc"

const HeadKernels kHeadKernels{multiply_int8, multiply_floats};
}  // namespace hebbline::neon
