#include <immintrin.h>

#include <utility>

#include "linear/strips.h"

namespace hebbline::avx512bf16 {
#include "linear/strips_kernels.inc"

const StripKernels kStripKernels{pack_token, strip};

}  // namespace hebbline::avx512bf16
