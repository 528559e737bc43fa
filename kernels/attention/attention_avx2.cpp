#include <immintrin.h>

#include "attention/attention.h"

namespace hebbline::avx2 {
#include "attention/attention_kernels.inc"
}  // namespace hebbline::avx2
