#include <immintrin.h>

#include <utility>

#include "linear/pick_narrow.h"

namespace hebbline::avx2vnni {
#include "linear/pick_narrow_kernels.inc"

namespace {

void strip(const NarrowPickView& weight, int64_t strip, const uint8_t* x_MK, int64_t stride, int64_t token,
           int64_t count, const StripFinish& finish) {
  const auto multiply = weight.value_type == ValueType::kInt8 ? multiply_integers<false> : multiply_integers<true>;
  multiply(weight, strip, x_MK, stride, token, count, finish);
}

}  // namespace

const NarrowPickKernels kNarrowPickKernels{Weights::kUnsignedX, strip};

}  // namespace hebbline::avx2vnni
