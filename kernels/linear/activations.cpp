#include "linear/activations.h"

#include <algorithm>

#include "platform/arithmetic.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kTokensPerTask = 8;

void quantise_token(const float* x_K, int64_t columns, float inverse, float* out_K) {
  for (int64_t k = 0; k < columns; ++k) out_K[k] = round_to_int8(x_K[k] * inverse);
}

float round_to_bfloat16(float value) { return bfloat16_to_float(float_to_bfloat16(value)); }

}  // namespace

Int8Scale token_scale(const float* x_K, int64_t columns, const std::optional<float>& fixed) {
  if (fixed) return {*fixed, 1 / *fixed};
  return int8_scale(largest_magnitude(x_K, columns));
}

RoundedActivations round_activations(const Call& call, int64_t columns, ValueType values, const Parallel& parallel) {
  if (values == ValueType::kFloat32) return {call.x_MK, nullptr};
  const int64_t tokens = call.tokens;
  const size_t bytes = static_cast<size_t>(tokens * columns + tokens) * sizeof(float);
  auto* out_MK = reinterpret_cast<float*>(scratch(Scratch::kActivations, bytes));
  float* scales_M = out_MK + tokens * columns;
  const bool quantised = values != ValueType::kBfloat16;
  parallel(static_cast<size_t>(ceil_div(tokens, kTokensPerTask)), [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) * kTokensPerTask;
    for (int64_t m = first; m < std::min(tokens, first + kTokensPerTask); ++m) {
      const float* x_K = call.x_MK + m * columns;
      float* out_K = out_MK + m * columns;
      if (quantised) {
        const Int8Scale scale = token_scale(x_K, columns, call.activation_scale);
        scales_M[m] = scale.scale;
        quantise_token(x_K, columns, scale.inverse, out_K);
      } else {
        std::transform(x_K, x_K + columns, out_K, round_to_bfloat16);
      }
    }
  });
  return {out_MK, quantised ? scales_M : nullptr};
}

}  // namespace hebbline
