#include <immintrin.h>

#include "linear/csr.h"

namespace hebbline::avx512bf16 {
#include "linear/csr_kernels.inc"
}  // namespace hebbline::avx512bf16
