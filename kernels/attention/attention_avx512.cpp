#include <immintrin.h>

#include "attention/attention.h"

namespace hebbline::avx512 {
#include "attention/attention_kernels.inc"
}  // namespace hebbline::avx512
