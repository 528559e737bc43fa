// The packing of picked columns: strips of 16 rows, whose links are taken in steps, and X permuted to them.
//
// A step is a window, 64 bytes of X (16 columns of float32, 32 of bfloat16, 64 of int8), and up to 1, 2 or 4 links of
// each row within it: a place in the window and a value each. One byte permutation brings the window's columns to where
// the values are, for any places, and one dot product does the rest. Rows move on at their own pace, a step serving the
// row that is furthest behind; windows start at multiples of 32 bytes, so that most rows find enough links in one.
// Against kTile it does no work for what is not linked, and takes a byte more a link.
//
// Where links are few, rows find them in a window only if it is broad: kBroad has windows of 256 bytes, from which two
// permutations of two vectors each and a choice between them take the columns. A place is still a byte.
//
// Legend: M tokens, S strips, T steps, R 16 rows of a strip, U units (words of 4 bytes) of X.
#pragma once

#include <cstddef>
#include <cstdint>

#include "linear/pick_steps.h"

namespace hebbline {

inline constexpr int64_t kWindowBytes = 64;
inline constexpr int64_t kBroadWindowBytes = 4 * kWindowBytes;
inline constexpr int64_t kWindowStride = 32;

// What a kernel reads: steps whose windows are counted in 32 bytes, 16 x links a step places each and 64 bytes of
// values, or coded ones: see pick_coded.h. A segment of integers begins with -128 x the sum of its weights.
struct PickView : StepsView {
  Kind kind;              // not kInt4: its values are stored as kInt8
  bool is_broad;          // windows of kBroadWindowBytes
  const uint8_t* tables;  // coded: exponents by code, [segments, 64 bytes], as ExponentTable has them; null: not coded
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
