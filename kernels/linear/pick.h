// The packing of picked columns: strips of 16 rows, whose links are taken in steps, and X permuted to them.
//
// A step is a window, 64 bytes of X (16 columns of float32, 32 of bfloat16, 64 of int8), and up to 1, 2 or 4 links of
// each row within it: a place in the window and a value each. One byte permutation brings the window's columns to where
// the values are, for any places, and one dot product does the rest. Rows move on at their own pace, a step serving the
// row that is furthest behind; windows start at multiples of 32 bytes, so that most rows find enough links in one.
// Against kTile it does no work for what is not linked, and takes a byte more a link.
//
// Legend: M tokens, S strips, T steps, R 16 rows of a strip, U units (words of 4 bytes) of X.
#pragma once

#include <cstddef>
#include <cstdint>

#include "linear/strips.h"

namespace hebbline {

inline constexpr int64_t kWindowBytes = 64;
inline constexpr int64_t kWindowStride = 32;
inline constexpr int64_t kPickTokens = 8;  // tokens a step is multiplied by before the next

// What a kernel reads.
struct PickView {
  Kind kind;  // not kInt4: its values are stored as kInt8
  int64_t rows;
  const uint16_t* windows_T;         // start of the window / 32 bytes
  const uint8_t* places;             // [T, 16 x links a step], within the window
  const uint8_t* values;             // [T, 64 bytes]; places without a link hold 0
  const Segment* segments;           // of steps, counted from the first of all
  const int64_t* segment_offsets_S;  // [S + 1]
  const float* scales;               // integers: [segments, 16]
  const int32_t* corrections;        // integers: -128 x the sum of the segment's weights, [segments, 16]
  const int32_t* order;              // row of each lane, [S x 16]; null: lane i is row i
};

struct PickKernels {
  // Multiplies a strip by `count` tokens, up to 8, from `token`, and finishes it. words_MU: the words of the call's
  // tokens as StripKernels::pack_token makes them, rows `stride` words apart.
  void (*strip)(const PickView& weight, int64_t strip, const uint32_t* words_MU, int64_t stride, int64_t token,
                int64_t count, const StripFinish& finish);
};

namespace avx512 {
extern const PickKernels kPickKernels;
}
namespace avx512bf16 {
extern const PickKernels kPickKernels;
}

}  // namespace hebbline
