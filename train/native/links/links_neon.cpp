#include <arm_neon.h>

#include <utility>

#include "links/links.h"

namespace hebbline::neon {
#include "links/links_kernels.inc"
}  // namespace hebbline::neon
