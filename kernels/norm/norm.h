// The RMS norm of a residual stream, with the sum before it (Zhang and Sennrich, 2019).
//
// Legend: T tokens, E hidden size.
#pragma once

#include <cstdint>

#include "platform/variants.h"

namespace hebbline {

// One instruction set's kernels.
struct NormKernels {
  // sum_E = hidden_E + update_E, and normed_E = sum_E / sqrt(mean(sum_E^2) + epsilon) * scale_E.
  void (*norm)(const float* hidden_E, const float* update_E, const float* scale_E, int64_t hidden_size, float epsilon,
               float* sum_E, float* normed_E);
};

// Those of the instruction set.
const NormKernels& norm_kernels(Isa isa);

HEBBLINE_DECLARE(NormKernels, kNormKernels)

}  // namespace hebbline
