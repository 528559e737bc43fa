#include "norm/norm.h"

namespace hebbline {

const NormKernels& norm_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512 || isa == Isa::kAmx) return avx512::kNormKernels;
  if (isa == Isa::kAvx2) return avx2::kNormKernels;
#endif
  static_cast<void>(isa);
  return scalar::kNormKernels;
}

}  // namespace hebbline
