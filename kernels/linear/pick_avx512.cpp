#include <immintrin.h>

#include <utility>

#include "linear/pick.h"

namespace hebbline::avx512 {
#include "linear/pick_kernels.inc"

const PickKernels kPickKernels{strip};

}  // namespace hebbline::avx512
