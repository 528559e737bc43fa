#include "linear/coded_values.h"

#include <array>
#include <bit>
#include <string>

#include "linear/tensor_checks.h"
#include "platform/arithmetic.h"

namespace hebbline {
namespace {

using ort::ElementType;
using ort::TensorView;

constexpr int64_t kMostPlanes = 8;  // bits of a code
constexpr size_t kCodes = size_t{1} << kMostPlanes;
constexpr int kMantissaBits = 23;
constexpr uint32_t kLargestExponent = 0xFF, kMantissa = (1U << kMantissaBits) - 1;

// Value `place` of a tensor of float32 or bfloat16, as the bits of a float.
uint32_t float_bits(const TensorView& tensor, int64_t place) {
  if (tensor.type == ElementType::kFloat) return static_cast<const uint32_t*>(tensor.data)[place];
  return static_cast<uint32_t>(static_cast<const uint16_t*>(tensor.data)[place]) << 16;
}

// Bytes of sign and fraction.
int64_t fraction_bytes(const LinearTensors& t) {
  if (t.values.type == ElementType::kFloat) return 3;
  if (t.values.type == ElementType::kBfloat16) return 1;
  refuse(t, "values are " + name(t.values.type) + ", not float32 or bfloat16");
}

int64_t checked_planes(const LinearTensors& t, int64_t links) {
  check_type(t, "codes", *t.codes, ElementType::kUint8);
  const auto& shape = t.codes->shape;
  if (shape.size() != 2 || shape[0] < 1 || shape[0] > kMostPlanes || shape[1] != ceil_div(links, 8)) {
    refuse(t,
           "codes have shape " + shape_text(*t.codes) + ", not [1 to 8, " + std::to_string(ceil_div(links, 8)) + "]");
  }
  return shape[0];
}

// The code of each link.
std::vector<uint8_t> take_codes(const LinearTensors& t, int64_t planes, int64_t links) {
  std::vector<uint8_t> codes_Z(static_cast<size_t>(links));
  const auto bytes = t.codes->as<uint8_t>();
  const int64_t row_bytes = ceil_div(links, 8);
  for (int64_t plane = 0; plane < planes; ++plane) {
    const uint8_t* row = bytes.data() + plane * row_bytes;
    for (int64_t z = 0; z < links; ++z) {
      codes_Z[z] = static_cast<uint8_t>(codes_Z[z] | (row[z / 8] >> (z % 8) & 1) << plane);
    }
    if (links % 8 != 0 && row[row_bytes - 1] >> (links % 8) != 0) refuse(t, "codes have padding bits set");
  }
  return codes_Z;
}

// The powers of two that codes stand for, as the bits of floats; that of code 0 is none.
std::vector<uint32_t> take_powers(const LinearTensors& t, int64_t planes) {
  check_type(t, "powers", *t.powers, t.values.type);
  const auto& shape = t.powers->shape;
  if (shape.size() != 1 || shape[0] >= int64_t{1} << planes) {
    refuse(t, "powers have shape " + shape_text(*t.powers) + ", not up to [" +
                  std::to_string((int64_t{1} << planes) - 1) + "]");
  }
  std::vector<uint32_t> powers{0};
  for (int64_t i = 0; i < shape[0]; ++i) {
    const uint32_t bits = float_bits(*t.powers, i), exponent = bits >> kMantissaBits;
    if ((bits & kMantissa) != 0 || exponent == 0 || exponent >= kLargestExponent) {
      refuse(t, "powers hold what is not a power of two");
    }
    if (bits <= powers.back()) refuse(t, "powers do not ascend");
    powers.push_back(bits);
  }
  return powers;
}

// Links that have a code other than 0; refuses codes beyond the powers.
int64_t count_coded(const LinearTensors& t, const std::vector<uint8_t>& codes_Z, size_t powers) {
  std::array<int64_t, kCodes> counts{};
  for (const uint8_t code : codes_Z) ++counts[code];
  int64_t coded = 0;
  for (size_t code = 1; code < kCodes; ++code) {
    if (counts[code] > 0 && code >= powers) {
      refuse(t, "codes hold " + std::to_string(code) + ", but there are " + std::to_string(powers - 1) + " powers");
    }
    coded += counts[code];
  }
  return coded;
}

// Sign and fraction, of `count` bytes with the lowest first, where they stand in a float.
uint32_t sign_and_fraction(const uint8_t* bytes, int64_t count) {
  uint32_t bits = 0;
  for (int64_t i = 0; i < count; ++i) bits |= static_cast<uint32_t>(bytes[i]) << (24 - 8 * (count - i));
  return (bits & kMantissa) | (bits >> kMantissaBits) << 31;
}

}  // namespace

std::vector<float> decode_values(const LinearTensors& t, int64_t links) {
  const int64_t width = fraction_bytes(t), planes = checked_planes(t, links);
  const std::vector<uint8_t> codes_Z = take_codes(t, planes, links);
  const std::vector<uint32_t> powers = take_powers(t, planes);
  const int64_t coded = count_coded(t, codes_Z, powers.size());
  check_shape(t, "values", t.values, {links - coded});
  check_type(t, "fractions", *t.fractions, ElementType::kUint8);
  check_shape(t, "fractions", *t.fractions, {coded, width});
  std::vector<float> values_Z(static_cast<size_t>(links));
  const auto* fraction = static_cast<const uint8_t*>(t.fractions->data);
  int64_t stored = 0;
  for (int64_t z = 0; z < links; ++z) {
    uint32_t bits = 0;
    if (codes_Z[z] == 0) {
      bits = float_bits(t.values, stored++);
    } else {
      bits = powers[codes_Z[z]] | sign_and_fraction(fraction, width);
      fraction += width;
    }
    values_Z[z] = std::bit_cast<float>(bits);
  }
  return values_Z;
}

}  // namespace hebbline
