#include <immintrin.h>

#include <utility>

#include "linear/quad.h"

namespace hebbline::avx2vnni {
#include "linear/quad_kernels.inc"

const QuadKernels kQuadKernels{transpose, strip};

}  // namespace hebbline::avx2vnni
