#include "norm/norm.h"

namespace hebbline {

const NormKernels& norm_kernels(Isa isa) { return HEBBLINE_CHOOSE(isa, kNormKernels); }

}  // namespace hebbline
