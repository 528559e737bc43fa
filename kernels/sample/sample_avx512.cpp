#include <immintrin.h>

#include "sample/sample.h"

namespace hebbline::avx512 {
#include "sample/sample_kernels.inc"
}  // namespace hebbline::avx512
