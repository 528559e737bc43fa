#include "draws/draws.h"

namespace hebbline::avx512 {
#include "draws/draws_kernels.inc"
}  // namespace hebbline::avx512
