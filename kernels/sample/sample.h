// What drawing a token takes of a row of logits: sums of weights, and the tokens that may matter.
//
// Legend: V vocabulary, B blocks of kSumBlock of it, N tokens that may matter.
#pragma once

#include <cstdint>

#include "platform/variants.h"

namespace hebbline {

// So many weights are added up at a time where a token is drawn.
constexpr int64_t kSumBlock = 256;

// One instruction set's kernels. Logits are finite or negative infinity, and none is above `peak`. The weight of a
// token is e^((logit - peak) / temperature) in float64.
struct SampleKernels {
  void (*weigh)(const float* logits_V, int64_t count, double peak, double temperature, double* weights_V);
  // sums_B = of each block, the sum of its weights; above_B = of those whose logits are at least `edge`.
  void (*add_up)(const float* logits_V, int64_t count, double peak, double temperature, float edge, double* sums_B,
                 double* above_B);
  // ids_N = the tokens whose logits are from `low` to `high`, in order, up to `capacity` of them. Returns how many
  // there are, or some number above `capacity`.
  int64_t (*find)(const float* logits_V, int64_t count, float low, float high, int64_t capacity, int64_t* ids_N);
};

// Those of the instruction set.
const SampleKernels& sample_kernels(Isa isa);

HEBBLINE_DECLARE(SampleKernels, kSampleKernels)

}  // namespace hebbline
