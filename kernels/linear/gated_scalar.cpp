#include "linear/gated.h"

namespace hebbline::scalar {
#include "linear/gated_kernels.inc"
}  // namespace hebbline::scalar
