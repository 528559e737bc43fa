#include "head/head.h"

namespace hebbline::scalar {
#include "head/head_kernels.inc"

const HeadKernels kHeadKernels{multiply, dot};
}  // namespace hebbline::scalar
