// The head's kernels for NEON with the dot product of int8.

#include <arm_neon.h>

#include "head/head.h"

namespace hebbline::neondot {
#include "head/head_floats.inc"

namespace {

constexpr int kRows = 4;

// sums[t * kRows + r] of four rows of the weight, `apart` rows from one to the next, and kTokens tokens.
template <int kTokens>
inline void multiply_int8_rows(const int8_t* weight_E, int64_t apart, const int8_t* tokens_TE, int64_t hidden,
                               int32_t* sums) {
  int32x4_t totals[kTokens][kRows] = {};
  int64_t e = 0;
  for (; e + 16 <= hidden; e += 16) {
    int8x16_t weight[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) weight[r] = vld1q_s8(weight_E + r * apart * hidden + e);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const int8x16_t token = vld1q_s8(tokens_TE + t * hidden + e);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) totals[t][r] = vdotq_s32(totals[t][r], token, weight[r]);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sums[t * kRows + r] = vaddvq_s32(totals[t][r]);
  }
  for (; e < hidden; ++e) {
    for (int t = 0; t < kTokens; ++t) {
      for (int r = 0; r < kRows; ++r) {
        sums[t * kRows + r] += int32_t{tokens_TE[t * hidden + e]} * weight_E[r * apart * hidden + e];
      }
    }
  }
}

// See multiply_int8_all in head_avx512.cpp on why the rows of a step lie apart. What four does not divide is multiplied
// as four times the same row.
template <int kTokens>
void multiply_int8_all(const HeadWeights& weights, int64_t first, int64_t last, const int8_t* tokens_TE, int32_t* sums,
                       int64_t stride) {
  const int64_t quarter = (last - first) / kRows;
  const auto step = [&](int64_t v, int64_t apart, int rows) {
    int32_t found[kTokens * kRows];
    multiply_int8_rows<kTokens>(weights.int8_VE + v * weights.hidden, apart, tokens_TE, weights.hidden, found);
    for (int t = 0; t < kTokens; ++t) {
      for (int r = 0; r < rows; ++r) sums[t * stride + v + r * apart - first] = found[t * kRows + r];
    }
  };
  for (int64_t v = first; v < first + quarter; ++v) step(v, quarter, kRows);
  for (int64_t v = first + kRows * quarter; v < last; ++v) step(v, 0, 1);
}

void multiply_int8(const HeadWeights& weights, const int32_t*, int64_t first, int64_t last, const int8_t* tokens_TE,
                   int64_t tokens, int32_t* sums, int64_t stride) {
  static_assert(kInt8Tokens == 4);
  switch (tokens) {
    case 1:
      return multiply_int8_all<1>(weights, first, last, tokens_TE, sums, stride);
    case 2:
      return multiply_int8_all<2>(weights, first, last, tokens_TE, sums, stride);
    case 3:
      return multiply_int8_all<3>(weights, first, last, tokens_TE, sums, stride);
    default:
      return multiply_int8_all<4>(weights, first, last, tokens_TE, sums, stride);
  }
}

}  // namespace

const HeadKernels kHeadKernels{multiply_int8, multiply_floats};

}  // namespace hebbline::neondot
