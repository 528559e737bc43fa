// X as the kernels take it: rounded as the value type of the weight asks.
//
// Legend: K columns of the weight, M tokens.
#pragma once

#include <cstdint>

#include "linear/packing.h"
#include "numbers.h"

namespace hebbline {

// Rows of X after rounding, as float32. Quantised: whole numbers from -128 to 127, to be multiplied by the token's
// scale at the end.
struct RoundedActivations {
  const float* x_MK;
  const float* scales_M;  // null where values are not quantised
};

// Rounds; the result lives in scratch memory of the calling thread (or is call.x_MK itself where nothing is rounded)
// until its next call.
RoundedActivations round_activations(const Call& call, int64_t columns, ValueType values, const Parallel& parallel);

// From the token's largest magnitude, or `fixed`. The scale is NaN or infinite where the token is not finite, and with
// it the result.
Int8Scale token_scale(const float* x_K, int64_t columns, const std::optional<float>& fixed);

}  // namespace hebbline
