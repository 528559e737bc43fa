#include <immintrin.h>

#include "linear/csr.h"

namespace hebbline::avx2 {
#include "linear/csr_kernels.inc"
}  // namespace hebbline::avx2
