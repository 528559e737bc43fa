// The head's kernels for NEON with matrix products of int8.

#include <arm_neon.h>

#include <utility>

#include "head/head.h"

namespace hebbline::neoni8mm {
#include "head/head_floats.inc"
#include "simd/unrolled.inc"

namespace {

constexpr int kRows = 4;
template <int kTokens>
constexpr int kInt8Rows = kRows;

// Two rows of 8 bytes each: the lower halves of `a` and `b`, and the upper ones.
struct RowPairs {
  int8x16_t low, high;
  RowPairs(const int8_t* a, const int8_t* b) {
    const int64x2_t first = vreinterpretq_s64_s8(vld1q_s8(a)), second = vreinterpretq_s64_s8(vld1q_s8(b));
    low = vreinterpretq_s8_s64(vzip1q_s64(first, second));
    high = vreinterpretq_s8_s64(vzip2q_s64(first, second));
  }
};

// Of four rows of the weight and kTokens tokens; signed numbers need no correction. A product is of two tokens by two
// rows; a token without a neighbour is its own.
template <int kTokens>
inline void multiply_int8_rows(const int8_t* weight_E, const int32_t*, int64_t apart, const int8_t* tokens_TE,
                               int64_t hidden, int32_t* sums) {
  constexpr int kTokenPairs = (kTokens + 1) / 2, kPairs = kTokenPairs * 2;
  const auto row = [&](int r) { return weight_E + r * apart * hidden; };
  const auto token = [&](int t) { return tokens_TE + (t < kTokens ? t : kTokens - 1) * hidden; };
  int32x4_t totals[kPairs];
  unrolled<kPairs>([&](auto i) { totals[i] = vdupq_n_s32(0); });
  int64_t e = 0;
  for (; e + 16 <= hidden; e += 16) {
    const RowPairs weights[] = {{row(0) + e, row(1) + e}, {row(2) + e, row(3) + e}};
    unrolled<kTokenPairs>([&](auto p) __attribute__((always_inline)) {
      const RowPairs x(token(2 * p) + e, token(2 * p + 1) + e);
      unrolled<2>([&](auto r) __attribute__((always_inline)) {
        const int32x4_t total = vmmlaq_s32(totals[2 * p + r], x.low, weights[r].low);
        totals[2 * p + r] = vmmlaq_s32(total, x.high, weights[r].high);
      });
    });
  }
  unrolled<kTokens>([&](auto t) {
    unrolled<2>([&](auto r) {
      const int32x4_t total = totals[t / 2 * 2 + r];  // [2 tokens, 2 rows]
      vst1_s32(sums + t * kRows + 2 * r, t % 2 == 0 ? vget_low_s32(total) : vget_high_s32(total));
    });
  });
  for (; e < hidden; ++e) {
    for (int t = 0; t < kTokens; ++t) {
      for (int r = 0; r < kRows; ++r) sums[t * kRows + r] += int32_t{token(t)[e]} * row(r)[e];
    }
  }
}

}  // namespace

#include "head/head_int8_rows.inc"

const HeadKernels kHeadKernels{multiply_int8, multiply_floats};

}  // namespace hebbline::neoni8mm
