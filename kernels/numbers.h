// Numbers of fewer bits than a float, and how floats become them: once, for all kernels.
//
// Everything here is static and by the compiler's own means: the linker keeps one copy of an inline function, and must
// not keep one that was compiled for another processor's instructions.
#pragma once

#include <cstdint>

namespace hebbline {

// How numbers are stored: the values of a layer, or keys and values of attention. A layer's say how X is rounded before
// the product: kFloat32: not at all. kBfloat16: to bfloat16. kInt8, kInt4: each token to int8 by its largest magnitude.
enum class ValueType { kFloat32, kBfloat16, kInt8, kInt4 };

// The bits of a bfloat16 are the upper half of a float's.
static inline float bfloat16_to_float(uint16_t bits) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
}

// A float16 as a float, which holds every one of them. Without instructions for it: it happens once a weight.
static inline float float16_to_float(uint16_t bits) {
  constexpr uint32_t kSmallestNormal = 0x400, kInfinite = 0x7C00, kBias = (127 - 15) << 23;
  const uint32_t magnitude = bits & 0x7FFFU, sign = (bits & 0x8000U) << 16;
  uint32_t wide = (magnitude << 13) + kBias;
  if (magnitude < kSmallestNormal) {
    wide = __builtin_bit_cast(uint32_t, static_cast<float>(magnitude) * 0x1p-24F);
  } else if (magnitude >= kInfinite) {
    wide += kBias;  // the largest exponent of one type is that of the other
  }
  return __builtin_bit_cast(float, sign | wide);
}

// To nearest even; NaN stays NaN.
static inline uint16_t float_to_bfloat16(float value) {
  const auto bits = __builtin_bit_cast(uint32_t, value);
  const bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  return static_cast<uint16_t>((nan ? bits | 0x400000 : bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// The largest magnitude, NaN where there is one: magnitudes order as their bits do, with NaN above all.
static inline float largest_magnitude(const float* x, int64_t count) {
  uint32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = __builtin_bit_cast(uint32_t, x[i]) & 0x7FFFFFFFU;
    most = magnitude > most ? magnitude : most;
  }
  return __builtin_bit_cast(float, most);
}

// The largest int8, by which numbers are scaled.
static constexpr float kLargestInt8 = 127;

// The least: of one scale for all tokens. With a scale of its own, a token has none below -127.
static constexpr float kLeastInt8 = -128;

// The smallest magnitude that numbers are scaled by, so that zeros have a finite inverse.
static constexpr float kSmallestMagnitude = 1e-30F;

// A number times `inverse` is rounded to int8; times `scale` it is the number again.
struct Int8Scale {
  float scale;
  float inverse;
};

// The scale of numbers of that largest magnitude: NaN or infinite where it is not finite.
static inline Int8Scale int8_scale(float largest) {
  const float floored = largest < kSmallestMagnitude ? kSmallestMagnitude : largest;
  return {floored / kLargestInt8, kLargestInt8 / floored};
}

// A scaled number as an int8, to nearest even, still as a float; NaN becomes -128. Adding and taking away 1.5 x 2^23
// rounds to whole numbers in a form that compilers vectorise.
static inline float round_to_int8(float scaled) {
  constexpr float kRounding = 12582912;
  const float least = scaled > kLeastInt8 ? scaled : kLeastInt8;
  const float held = least < kLargestInt8 ? least : kLargestInt8;
  return (held + kRounding) - kRounding;
}

}  // namespace hebbline
