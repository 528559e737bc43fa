#include <immintrin.h>

#include <utility>

#include "linear/quad.h"

namespace hebbline::avx2 {
#include "linear/quad_kernels.inc"

const QuadKernels kQuadKernels{transpose, strip};

}  // namespace hebbline::avx2
