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

float quantise(const float* x_K, int64_t columns, int64_t padded, float fixed_scale, int8_t* out_K) {
  float scale = fixed_scale, inverse = 1 / fixed_scale;
  if (!(fixed_scale > 0)) {
    const Int8Scale found = int8_scale(largest_magnitude(x_K, columns));
    scale = found.scale;
    inverse = found.inverse;
  }
  const __m256 factor = _mm256_set1_ps(inverse);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing goes by halves
  for (int64_t k = 0; k < padded; k += 32) {
    __m256i part[4];
    for (int i = 0; i < 4; ++i) part[i] = quants(load_columns(x_K, k + 8 * i, columns), factor);
    const __m256i bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(part[0], part[1]), _mm256_packs_epi32(part[2], part[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out_K + k), _mm256_permutevar8x32_epi32(bytes, order));
  }
  return scale;
}

}  // namespace

const ByteKernels kByteKernels{quantise};

}  // namespace hebbline::avx2
