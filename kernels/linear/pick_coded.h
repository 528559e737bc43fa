// Exponents in few bits, without loss: for the packing of picked columns of float32 and bfloat16.
//
// Nearly all weights of a layer have one of few exponents, so that a code for it takes the bits that a place in a
// window leaves of its byte: 3 of bfloat16, 4 of float32. What is left of a value, sign and mantissa, is stored as it
// is, in 1 byte or 3. Code 0 is exponent 0: zeros, denormals, and places without a link. The other codes are the
// layer's most common exponents; links of the next common ones are steps of their own, with a table of their own, and
// so on: every value keeps every bit, infinities and NaN included.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "linear/matrix.h"
#include "linear/pick_steps.h"

namespace hebbline {

// The exponents that codes stand for, where they stand in the bits of a value: 16 numbers of 4 bytes for float32, 32 of
// 2 bytes, of which 8 are used, for bfloat16.
using ExponentTable = std::array<uint8_t, 64>;

// Codes that a byte of a step has room for.
constexpr int64_t exponent_codes(ValueType values) { return values == ValueType::kFloat32 ? 16 : 8; }

// Links whose exponents are not among those of the first table.
int64_t count_rare_links(const SparseMatrix& matrix);

struct CodedSteps {
  StepLists lists;
  std::vector<ExponentTable> tables;  // one a segment
};

// Packs float32 or bfloat16: of a step 16 x links bytes of place + code x window columns, and as many times 3 or 1
// bytes of sign and mantissa.
CodedSteps pack_coded(const SparseMatrix& matrix, const RowOrder& order, const StepShape& shape);

}  // namespace hebbline
