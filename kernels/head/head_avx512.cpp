// The head's kernels for AVX-512 with VNNI.

#include <immintrin.h>

#include "head/head.h"

namespace hebbline::avx512 {
#include "head/head_floats.inc"

namespace {

constexpr int kRows = 4;

// The sums of the lanes of four vectors.
inline __m128i sums_of_lanes(const __m512i x[kRows]) {
  const __m512i low = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
  const __m512i high = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// sums[t * kRows + r] of four rows of the weight and kTokens tokens. VPDPBUSD takes unsigned times signed numbers:
// tokens go in plus 128, and 128 times the row's sum comes off at the end.
template <int kTokens>
inline void multiply_int8_rows(const int8_t* const weights_E[kRows], __m128i row_sums, const int8_t* tokens_TE,
                               int64_t hidden, int32_t* sums) {
  const __m512i offset = _mm512_set1_epi8(-128);
  __m512i totals[kTokens][kRows];
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < kRows; ++r) totals[t][r] = _mm512_setzero_si512();
  }
  for (int64_t e = 0; e < hidden; e += 64) {
    const __mmask64 mask = hidden - e < 64 ? (__mmask64{1} << (hidden - e)) - 1 : ~__mmask64{0};
    __m512i weight[kRows];
    for (int r = 0; r < kRows; ++r) weight[r] = _mm512_maskz_loadu_epi8(mask, weights_E[r] + e);
    for (int t = 0; t < kTokens; ++t) {
      const __m512i token = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, tokens_TE + t * hidden + e), offset);
      for (int r = 0; r < kRows; ++r) totals[t][r] = _mm512_dpbusd_epi32(totals[t][r], token, weight[r]);
    }
  }
  const __m128i correction = _mm_slli_epi32(row_sums, 7);
#pragma GCC unroll 4  // else the totals live in memory
  for (int t = 0; t < kTokens; ++t) {
    const __m128i sum = _mm_sub_epi32(sums_of_lanes(totals[t]), correction);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + t * kRows), sum);
  }
}

// The four rows of a step lie far apart: four streams that the processor prefetches. Four neighbouring rows are read in
// an order that it does not see through, at a third of the speed.
template <int kTokens>
void multiply_int8_all(const HeadWeights& weights, const int32_t* row_sums_V, int64_t first, int64_t last,
                       const int8_t* tokens_TE, int32_t* sums, int64_t stride) {
  const int64_t quarter = (last - first) / kRows;
  const auto step = [&](int64_t v, int64_t apart, int rows) {
    const int8_t* weights_E[kRows];
    alignas(16) int32_t row_sums[kRows];
    for (int r = 0; r < kRows; ++r) {
      weights_E[r] = weights.int8_VE + (v + r * apart) * weights.hidden;
      row_sums[r] = row_sums_V[v + r * apart];
    }
    int32_t found[kTokens * kRows];
    const __m128i packed = _mm_load_si128(reinterpret_cast<const __m128i*>(row_sums));
    multiply_int8_rows<kTokens>(weights_E, packed, tokens_TE, weights.hidden, found);
    for (int t = 0; t < kTokens; ++t) {
      for (int r = 0; r < rows; ++r) sums[t * stride + v + r * apart - first] = found[t * kRows + r];
    }
  };
  for (int64_t v = first; v < first + quarter; ++v) step(v, quarter, kRows);
  for (int64_t v = first + kRows * quarter; v < last; ++v) step(v, 0, 1);
}

void multiply_int8(const HeadWeights& weights, const int32_t* row_sums_V, int64_t first, int64_t last,
                   const int8_t* tokens_TE, int64_t tokens, int32_t* sums, int64_t stride) {
  static_assert(kInt8Tokens == 4);
  switch (tokens) {
    case 1:
      return multiply_int8_all<1>(weights, row_sums_V, first, last, tokens_TE, sums, stride);
    case 2:
      return multiply_int8_all<2>(weights, row_sums_V, first, last, tokens_TE, sums, stride);
    case 3:
      return multiply_int8_all<3>(weights, row_sums_V, first, last, tokens_TE, sums, stride);
    default:
      return multiply_int8_all<4>(weights, row_sums_V, first, last, tokens_TE, sums, stride);
  }
}

}  // namespace

const HeadKernels kHeadKernels{multiply_int8, multiply_floats};

}  // namespace hebbline::avx512
