// The head's kernels for NEON with the dot product of int8.

#include <arm_neon.h>

#include "head/head.h"

namespace hebbline::neondot {
#include "head/head_floats.inc"

namespace {

constexpr int kRows = 4;
template <int kTokens>
constexpr int kInt8Rows = kRows;

// Of four rows of the weight and kTokens tokens; signed numbers need no correction.
template <int kTokens>
inline void multiply_int8_rows(const int8_t* weight_E, const int32_t*, int64_t apart, const int8_t* tokens_TE,
                               int64_t hidden, int32_t* sums) {
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

}  // namespace

#include "head/head_int8_rows.inc"

const HeadKernels kHeadKernels{multiply_int8, multiply_floats};

}  // namespace hebbline::neondot
