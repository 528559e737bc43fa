#include "linear/activations.h"

#include <algorithm>
#include <bit>

#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kTokensPerTask = 8;
constexpr float kLargestQuant = 127;
constexpr float kLeastQuant = -128;  // of one scale for all tokens; with a scale of its own a token has none below -127

// Rounds to bfloat16, to nearest even; NaN stays NaN.
float round_to_bfloat16(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
  const bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  bits = nan ? (bits | 0x400000) & 0xFFFF0000 : rounded;
  return std::bit_cast<float>(bits);
}

// The largest magnitude; the order of the bits is that of the magnitudes, with NaN above all.
float largest_magnitude(const float* x_K, int64_t columns) {
  uint32_t most = 0;
  for (int64_t k = 0; k < columns; ++k) most = std::max(most, std::bit_cast<uint32_t>(x_K[k]) & 0x7FFFFFFFU);
  return std::bit_cast<float>(most);
}

void quantise_token(const float* x_K, int64_t columns, float inverse, float* out_K) {
  // Adding and taking away 1.5 x 2^23 rounds to whole numbers, to nearest even, in a form that compilers vectorise.
  constexpr float kRounding = 12582912;
  for (int64_t k = 0; k < columns; ++k) {
    const float step = std::min(std::max(x_K[k] * inverse, kLeastQuant), kLargestQuant);
    out_K[k] = (step + kRounding) - kRounding;
  }
}

}  // namespace

TokenScale token_scale(const float* x_K, int64_t columns, const std::optional<float>& fixed) {
  if (fixed) return {*fixed, 1 / *fixed};
  const float largest = largest_magnitude(x_K, columns);
  const float floored = largest < kSmallestMagnitude ? kSmallestMagnitude : largest;
  return {floored / kLargestQuant, kLargestQuant / floored};
}

RoundedActivations round_activations(const Call& call, int64_t columns, ValueType values, const Parallel& parallel) {
  if (values == ValueType::kFloat32) return {call.x_MK, nullptr};
  const int64_t tokens = call.tokens;
  const size_t bytes = static_cast<size_t>(tokens * columns + tokens) * sizeof(float);
  auto* out_MK = reinterpret_cast<float*>(scratch(Scratch::kActivations, bytes));
  float* scales_M = out_MK + tokens * columns;
  const bool quantised = values != ValueType::kBfloat16;
  parallel(static_cast<size_t>((tokens + kTokensPerTask - 1) / kTokensPerTask), [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) * kTokensPerTask;
    for (int64_t m = first; m < std::min(tokens, first + kTokensPerTask); ++m) {
      const float* x_K = call.x_MK + m * columns;
      float* out_K = out_MK + m * columns;
      if (quantised) {
        const TokenScale scale = token_scale(x_K, columns, call.activation_scale);
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
