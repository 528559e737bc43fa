#include <arm_neon.h>

#include <utility>

#include "linear/quad.h"

namespace hebbline::neoni8mm {
#include "linear/quad_neon.inc"

const QuadKernels kQuadKernels{transpose, strip};

}  // namespace hebbline::neoni8mm
