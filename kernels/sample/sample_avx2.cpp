#include <immintrin.h>

#include "sample/sample.h"

namespace hebbline::avx2 {
#include "sample/sample_kernels.inc"
}  // namespace hebbline::avx2
