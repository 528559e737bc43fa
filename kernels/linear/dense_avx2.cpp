#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "linear/dense.h"

namespace hebbline::avx2 {
#include "linear/dense_kernels.inc"
}  // namespace hebbline::avx2
