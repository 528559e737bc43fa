// The head's kernels for AVX2.

#include <immintrin.h>

#include <utility>

#include "head/head.h"

namespace hebbline::avx2 {
#include "head/head_floats.inc"

namespace {

template <int kTokens>
constexpr int kInt8Rows = kTokens == 1 ? 4 : 2;  // each has two registers, beside the sums

constexpr int32_t kTokenOffset = 0;

// VPMADDUBSW takes unsigned times signed numbers: the sign of a weight moves to the token. Two products of at most
// 128 * 127 fit in 16 bits, as no number of a token is -128.
inline __m256i multiply_add(__m256i total, __m256i token, __m256i weight) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weight), _mm256_sign_epi8(token, weight));
  return _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

}  // namespace

#include "head/head_int8_avx2.inc"

const HeadKernels kHeadKernels{multiply_int8, multiply_floats};

}  // namespace hebbline::avx2
