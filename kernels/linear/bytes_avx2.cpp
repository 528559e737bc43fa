#include <immintrin.h>

#include "linear/bytes.h"
#include "numbers.h"

namespace hebbline::avx2 {
namespace {

// 8 floats from column k on; 0 past the last column.
inline __m256 load_columns(const float* x_K, int64_t k, int64_t columns) {
  if (k + 8 <= columns) return _mm256_loadu_ps(x_K + k);
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int left = columns > k ? static_cast<int>(columns - k) : 0;
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(left), lanes);
  return left == 0 ? _mm256_setzero_ps() : _mm256_maskload_ps(x_K + k, mask);
}

// 8 columns as whole numbers, to nearest even. NaN counts as the least: the scale carries it to the result.
inline __m256i quants(__m256 x, __m256 inverse) {
  const __m256 most = _mm256_set1_ps(127), least = _mm256_set1_ps(-128);
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(_mm256_mul_ps(x, inverse), least), most));
}

float quantise(const float* x_K, int64_t columns, int64_t padded, float fixed_scale, bool is_unsigned, int8_t* out_K) {
  float scale = fixed_scale, inverse = 1 / fixed_scale;
  if (!(fixed_scale > 0)) {
    const Int8Scale found = int8_scale(largest_magnitude(x_K, columns));
    scale = found.scale;
    inverse = found.inverse;
  }
  const __m256i offset = _mm256_set1_epi8(is_unsigned ? -128 : 0);
  const __m256 factor = _mm256_set1_ps(inverse);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing goes by halves
  for (int64_t k = 0; k < padded; k += 32) {
    __m256i part[4];
    for (int i = 0; i < 4; ++i) part[i] = quants(load_columns(x_K, k + 8 * i, columns), factor);
    const __m256i bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(part[0], part[1]), _mm256_packs_epi32(part[2], part[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out_K + k),
                        _mm256_xor_si256(_mm256_permutevar8x32_epi32(bytes, order), offset));
  }
  return scale;
}

// 8 numbers in the high halves of their lanes, rounded.
inline __m256i rounded_bits(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}

void halve(const float* x_K, int64_t columns, int64_t padded, uint16_t* out_K) {
  for (int64_t k = 0; k < padded; k += 16) {
    const __m256i low = rounded_bits(load_columns(x_K, k, columns)),
                  high = rounded_bits(load_columns(x_K, k + 8, columns));
    constexpr int kHalvesInOrder = 0xD8;  // packing goes by halves
    const __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), kHalvesInOrder);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out_K + k), halves);
  }
}

}  // namespace

const ByteKernels kByteKernels{quantise, halve};

}  // namespace hebbline::avx2
