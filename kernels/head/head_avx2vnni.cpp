// The head's kernels for AVX2 with AVX-VNNI.

#include <immintrin.h>

#include <utility>

#include "head/head.h"

namespace hebbline::avx2vnni {
#include "head/head_floats.inc"

namespace {

template <int kTokens>
constexpr int kInt8Rows = kTokens <= 2 ? 4 : 2;  // half of the registers hold sums

constexpr int32_t kTokenOffset = 128;

// VPDPBUSD takes unsigned times signed numbers: tokens go in plus 128, and 128 times the sum of what they were
// multiplied by comes off at the end.
inline __m256i multiply_add(__m256i total, __m256i token, __m256i weight) {
  return _mm256_dpbusd_avx_epi32(total, _mm256_xor_si256(token, _mm256_set1_epi8(-128)), weight);
}

}  // namespace

#include "head/head_int8_avx2.inc"

const HeadKernels kHeadKernels{multiply_int8, multiply_floats};

}  // namespace hebbline::avx2vnni
