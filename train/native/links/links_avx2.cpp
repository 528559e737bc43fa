#include <immintrin.h>

#include <utility>

#include "links/links.h"

namespace hebbline::avx2 {
#include "links/links_kernels.inc"
}  // namespace hebbline::avx2
