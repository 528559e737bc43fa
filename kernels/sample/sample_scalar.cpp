#include "sample/sample.h"

namespace hebbline::scalar {
#include "sample/sample_kernels.inc"
}  // namespace hebbline::scalar
