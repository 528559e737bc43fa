// What drawing a token takes of a row of logits: weights, and the tokens that may matter.
//
// Legend: V vocabulary, N tokens that may matter, B blocks of kSumBlock of them, M tokens near an edge.
#pragma once

#include <cstdint>

#include "platform/variants.h"

namespace hebbline {

// So many weights are added up at a time where a token is drawn.
constexpr int64_t kSumBlock = 256;

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
  // sums_B = of each block, the sum of the weights that are at least `least`.
  void (*add_up)(const double* weights_N, int64_t count, double least, double* sums_B);
  // kept_N = whether a weight is above `high`, and sums_B the sums of these. ids_M = the tokens from `low` to `high`,
  // in order, up to `capacity` of them; returns how many there are.
  int64_t (*split)(const double* weights_N, int64_t count, double low, double high, int64_t capacity, uint8_t* kept_N,
                   double* sums_B, int64_t* ids_M);
};

// Those of the instruction set.
const SampleKernels& sample_kernels(Isa isa);

HEBBLINE_DECLARE(SampleKernels, kSampleKernels)

}  // namespace hebbline
