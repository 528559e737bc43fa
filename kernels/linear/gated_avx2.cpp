#include <immintrin.h>

#include "linear/gated.h"

namespace hebbline::avx2 {
#include "linear/gated_kernels.inc"
}  // namespace hebbline::avx2
