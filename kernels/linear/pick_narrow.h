// The packing of picked columns for vectors of 32 bytes: strips of 8 rows, whose links are taken in steps.
//
// As pick.h has it, but for a byte permutation within 16 bytes: a step is a window of 16 bytes of X, or of 32, for
// which two permutations are joined, and up to 4 links of integers, 2 of bfloat16 or one of float32 of each row within
// it. Windows start anywhere. Sums are of 4 bytes, one lane a row. Places of 16 columns of integers take half a byte,
// and so do 4-bit values.
//
// Legend: M tokens, S strips, T steps, K columns.
#pragma once

#include <cstddef>
#include <cstdint>

#include "linear/matrix.h"
#include "linear/strips.h"

namespace hebbline {

inline constexpr int64_t kNarrowRows = 8;     // rows of a strip
inline constexpr int64_t kNarrowWindow = 16;  // bytes of X
inline constexpr int64_t kBroadWindow = 32;
inline constexpr int64_t kNarrowTokens = 8;  // tokens a step is multiplied by before the next

// What a kernel reads. Half bytes: slot i of a step in the low half of byte i, slot i + 16 in the high one.
struct NarrowPickView {
  int64_t rows;
  ValueType value_type;
  bool broad;                        // windows of 32 bytes, else of 16; always of float32
  const uint16_t* windows_T;         // first column
  const uint8_t* places;             // integers: [T, 32], or [T, 16] half bytes, columns within the window;
                                     // bfloat16: [T, 16], bytes within the window; float32: [T, 8] half bytes, row 0
                                     // in the lowest of 4 bytes, columns within the window
  const uint8_t* values;             // [T, 32 bytes]; 4-bit values: [T, 16] half bytes, stored + 8. Slots without a
                                     // link hold 0
  const Segment* segments;           // integers: steps of one group of scales; else: up to 256 steps
  const int64_t* segment_offsets_S;  // [S + 1]
  const float* scales;               // integers: [segments, 8]
  const int32_t* corrections;  // integers: the sum of the magnitudes of the segment's negative weights, [segments, 8]
  const int32_t* order;        // row of each lane, [S x 8]; null: lane i is row i
};

struct NarrowPickKernels {
  // Multiplies a strip by `count` tokens, up to 8, from `token`, and finishes it. x_MK: signed bytes, bfloat16 or
  // float32, rows `stride` bytes apart, which may be read a window past their columns.
  void (*strip)(const NarrowPickView& weight, int64_t strip, const uint8_t* x_MK, int64_t stride, int64_t token,
                int64_t count, const StripFinish& finish);
};

namespace avx2 {
extern const NarrowPickKernels kNarrowPickKernels;
}

}  // namespace hebbline
