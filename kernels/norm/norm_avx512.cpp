#include <immintrin.h>

#include "norm/norm.h"

namespace hebbline::avx512 {
#include "norm/norm_kernels.inc"
}  // namespace hebbline::avx512
