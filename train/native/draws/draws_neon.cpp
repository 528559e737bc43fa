#include "draws/draws.h"

namespace hebbline::neon {
#include "draws/draws_kernels.inc"
}  // namespace hebbline::neon
