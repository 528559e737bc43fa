#include <immintrin.h>

#include <utility>

#include "links/links.h"

namespace hebbline::avx512 {
#include "links/links_kernels.inc"
}  // namespace hebbline::avx512
