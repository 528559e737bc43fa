// What drawing a token takes of a row of logits: weights, and the tokens that may matter.
//
// Legend: V vocabulary, N tokens that may matter.
#pragma once

#include <cstdint>

#include "platform/variants.h"

namespace hebbline {

// One instruction set's kernels. Logits are finite or negative infinity, and none is above `peak`.
struct SampleKernels {
  // weights_V = e^((logits_V - peak) * inverse) in float32; returns their sum.
  double (*weigh)(const float* logits_V, int64_t count, float peak, float inverse, float* weights_V);
  // The same in float64, divided by the temperature.
  void (*weigh_exactly)(const float* logits_V, int64_t count, double peak, double temperature, double* weights_V);
  // ids_N = the tokens whose logits are at least `edge`, in order, up to `capacity` of them. Returns how many there
  // are, or some number above `capacity`; `rest` is the sum of the weights of the others, where all were looked at.
  int64_t (*select)(const float* logits_V, const float* weights_V, int64_t count, float edge, int64_t capacity,
                    int64_t* ids_N, double* rest);
};

// Those of the instruction set.
const SampleKernels& sample_kernels(Isa isa);

HEBBLINE_DECLARE(SampleKernels, kSampleKernels)

}  // namespace hebbline
