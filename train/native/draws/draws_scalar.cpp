#include "draws/draws.h"

namespace hebbline::scalar {
#include "draws/draws_kernels.inc"
}  // namespace hebbline::scalar
