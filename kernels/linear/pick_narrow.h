// The packing of picked columns for vectors of 32 bytes: strips of 8 rows, whose links of integers are taken in steps.
//
// As pick.h has it, but for a byte permutation within 16 bytes: a step is a window of 16 columns of X, or of 32, for
// which two permutations are joined, and up to 4 links of each row within it. Windows start anywhere. Sums are int32,
// one lane a row. Places of 16 columns take half a byte, and so do 4-bit values.
//
// Legend: M tokens, S strips, T steps, K columns.
#pragma once

#include <cstddef>
#include <cstdint>

#include "linear/strips.h"

namespace hebbline {

inline constexpr int64_t kNarrowRows = 8;     // rows of a strip
inline constexpr int64_t kNarrowLinks = 4;    // links of a row in a step
inline constexpr int64_t kNarrowSlots = 32;   // links of a step
inline constexpr int64_t kNarrowWindow = 16;  // columns
inline constexpr int64_t kBroadWindow = 32;
inline constexpr int64_t kNarrowTokens = 8;  // tokens a step is multiplied by before the next

// What a kernel reads. Half bytes: slot i of a step in the low half of byte i, slot i + 16 in the high one.
struct NarrowPickView {
  int64_t rows;
  bool broad;                        // windows of 32 columns, places of a byte; else of 16, of half a byte
  bool half_values;                  // 4-bit values, stored + 8; else int8
  const uint16_t* windows_T;         // first column
  const uint8_t* places;             // [T, 32] or [T, 16], within the window
  const uint8_t* values;             // [T, 32] or [T, 16]; slots without a link hold 0
  const Segment* segments;           // steps of one group of scales
  const int64_t* segment_offsets_S;  // [S + 1]
  const float* scales;               // [segments, 8]
  const int32_t* corrections;        // the sum of the magnitudes of the segment's negative weights, [segments, 8]
  const int32_t* order;              // row of each lane, [S x 8]; null: lane i is row i
};

struct NarrowPickKernels {
  // Multiplies a strip by `count` tokens, up to 8, from `token`, and finishes it. x_MK: signed bytes, rows `stride`
  // apart, which may be read a window past their columns.
  void (*strip)(const NarrowPickView& weight, int64_t strip, const int8_t* x_MK, int64_t stride, int64_t token,
                int64_t count, const StripFinish& finish);
};

namespace avx2 {
extern const NarrowPickKernels kNarrowPickKernels;
}

}  // namespace hebbline
