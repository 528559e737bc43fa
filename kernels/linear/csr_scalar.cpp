#include "linear/csr.h"

namespace hebbline::scalar {
#include "linear/csr_kernels.inc"
}  // namespace hebbline::scalar
