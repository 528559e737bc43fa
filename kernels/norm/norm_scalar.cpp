#include "norm/norm.h"

namespace hebbline::scalar {
#include "norm/norm_kernels.inc"
}  // namespace hebbline::scalar
