#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "linear/dense.h"

namespace hebbline::avx512 {
#include "linear/dense_kernels.inc"
}  // namespace hebbline::avx512
