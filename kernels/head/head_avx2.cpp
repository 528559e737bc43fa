#include "head/head.h"

namespace hebbline::avx2 {
#include "head/head_kernels.inc"

const HeadKernels kHeadKernels{multiply, dot};
}  // namespace hebbline::avx2
