#include "attention/attention.h"

namespace hebbline::scalar {
#include "attention/attention_kernels.inc"
}  // namespace hebbline::scalar
