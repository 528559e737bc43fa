#include <arm_neon.h>

#include "linear/bytes.h"
#include "numbers.h"

namespace hebbline::neondot {
namespace {

// 4 floats from column k on; 0 past the last column.
inline float32x4_t load_columns(const float* x_K, int64_t k, int64_t columns) {
  if (k + 4 <= columns) return vld1q_f32(x_K + k);
  float some[4] = {};
  for (int64_t i = 0; k + i < columns; ++i) some[i] = x_K[k + i];
  return vld1q_f32(some);
}

// 8 columns as whole numbers, to nearest even, from the least to the largest that 16 bits hold. NaN counts as 0: the
// scale carries it to the result.
inline int16x8_t quants(const float* x_K, int64_t k, int64_t columns, float inverse) {
  const int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(load_columns(x_K, k, columns), inverse));
  const int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(load_columns(x_K, k + 4, columns), inverse));
  return vcombine_s16(vqmovn_s32(low), vqmovn_s32(high));
}

float quantise(const float* x_K, int64_t columns, int64_t padded, float fixed_scale, bool is_unsigned, int8_t* out_K) {
  const auto [scale, inverse] =
      fixed_scale > 0 ? Int8Scale{fixed_scale, 1 / fixed_scale} : int8_scale(largest_magnitude(x_K, columns));
  const int8x16_t offset = vdupq_n_s8(is_unsigned ? -128 : 0);
  for (int64_t k = 0; k < padded; k += 16) {
    const int8x8_t low = vqmovn_s16(quants(x_K, k, columns, inverse));
    const int8x16_t bytes = vcombine_s8(low, vqmovn_s16(quants(x_K, k + 8, columns, inverse)));
    vst1q_s8(out_K + k, veorq_s8(bytes, offset));
  }
  return scale;
}

}  // namespace

const ByteKernels kByteKernels{quantise, nullptr};  // no packing of NEON takes bfloat16 by bytes

}  // namespace hebbline::neondot
