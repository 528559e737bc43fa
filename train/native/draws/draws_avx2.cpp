#include "draws/draws.h"

namespace hebbline::avx2 {
#include "draws/draws_kernels.inc"
}  // namespace hebbline::avx2
