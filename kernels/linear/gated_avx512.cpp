#include <immintrin.h>

#include "linear/gated.h"

namespace hebbline::avx512 {
#include "linear/gated_kernels.inc"
}  // namespace hebbline::avx512
