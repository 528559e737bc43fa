#include <immintrin.h>

#include "norm/norm.h"

namespace hebbline::avx2 {
#include "norm/norm_kernels.inc"
}  // namespace hebbline::avx2
