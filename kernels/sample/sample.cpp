#include "sample/sample.h"

namespace hebbline {

const SampleKernels& sample_kernels(Isa isa) { return HEBBLINE_CHOOSE(isa, kSampleKernels); }

}  // namespace hebbline
