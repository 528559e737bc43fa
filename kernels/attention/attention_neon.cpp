#include <arm_neon.h>

#include "attention/attention.h"

namespace hebbline::neon {
#include "attention/attention_kernels.inc"
}  // namespace hebbline::neon
