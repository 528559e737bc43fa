// The head's kernels for AVX-512 with VNNI.

#include <immintrin.h>

#include <utility>

#include "head/head.h"

namespace hebbline::avx512 {
#include "head/head_floats.inc"
#include "simd/unrolled.inc"

namespace {

constexpr int kRows = 4;
template <int kTokens>
constexpr int kInt8Rows = kRows;

// The sums of the lanes of four vectors.
inline __m128i sums_of_lanes(const __m512i* x) {
  const __m512i low = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
  const __m512i high = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// Of four rows of the weight and kTokens tokens. VPDPBUSD takes unsigned times signed numbers: tokens go in plus 128,
// and 128 times the row's sum comes off at the end.
template <int kTokens>
inline void multiply_int8_rows(const int8_t* weight_E, const int32_t* row_sums, int64_t apart, const int8_t* tokens_TE,
                               int64_t hidden, int32_t* sums) {
  const __m512i offset = _mm512_set1_epi8(-128);
  __m512i totals[kTokens * kRows];
  unrolled<kTokens * kRows>([&](auto i) { totals[i] = _mm512_setzero_si512(); });
  for (int64_t e = 0; e < hidden; e += 64) {
    const __mmask64 mask = hidden - e < 64 ? (__mmask64{1} << (hidden - e)) - 1 : ~__mmask64{0};
    __m512i weight[kRows];
    unrolled<kRows>([&](auto r) { weight[r] = _mm512_maskz_loadu_epi8(mask, weight_E + r * apart * hidden + e); });
    unrolled<kTokens>([&](auto t) {
      const __m512i token = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, tokens_TE + t * hidden + e), offset);
      unrolled<kRows>([&](auto r) {
        __m512i total = _mm512_dpbusd_epi32(totals[t * kRows + r], token, weight[r]);
        in_turn(total);
        totals[t * kRows + r] = total;
      });
    });
  }
  const __m128i all = _mm_setr_epi32(row_sums[0], row_sums[apart], row_sums[2 * apart], row_sums[3 * apart]);
  const __m128i correction = _mm_slli_epi32(all, 7);
  unrolled<kTokens>([&](auto t) {
    const __m128i sum = _mm_sub_epi32(sums_of_lanes(totals + t * kRows), correction);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + t * kRows), sum);
  });
}

}  // namespace

#include "head/head_int8_rows.inc"

const HeadKernels kHeadKernels{multiply_int8, multiply_floats};

}  // namespace hebbline::avx512
