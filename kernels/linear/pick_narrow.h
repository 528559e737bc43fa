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

#include "linear/pick_steps.h"
#include "platform/variants.h"

namespace hebbline {

inline constexpr int64_t kNarrowRows = 8;     // rows of a strip
inline constexpr int64_t kNarrowWindow = 16;  // bytes of X
inline constexpr int64_t kBroadWindow = 32;

// What a kernel reads: steps whose windows begin at any column.
//
// Places are columns within the window: of integers [T, 32] bytes, or in narrow windows [T, 16] of half bytes; of
// float32 [T, 8] half bytes, row 0 in the lowest of 4 bytes; of bfloat16 [T, 16] bytes, which count in bytes. Values
// are [T, 32] bytes; 4-bit values [T, 16] half bytes, stored + 8. Of half bytes, slot i of a step is in the low half of
// byte i, slot i + 16 in the high one. A segment of integers begins with what NarrowPickKernels::unsigned_x asks for.
struct NarrowPickView : StepsView {
  ValueType value_type;
  bool broad;  // windows of 32 bytes, else of 16; always of float32
};

struct NarrowPickKernels {
  // Integers of X come plus 128, and a segment begins with -128 x the sum of its weights. Else they are signed, and it
  // begins with the sum of the magnitudes of its negative weights.
  bool unsigned_x;
  // Multiplies a strip by `count` tokens, up to 8, from `token`, and finishes it. x_MK: bytes, bfloat16 or
  // float32, rows `stride` bytes apart, which may be read a window past their columns.
  void (*strip)(const NarrowPickView& weight, int64_t strip, const uint8_t* x_MK, int64_t stride, int64_t token,
                int64_t count, const StripFinish& finish);
};

HEBBLINE_DECLARE_IN(avx2, NarrowPickKernels, kNarrowPickKernels)
HEBBLINE_DECLARE_IN(avx2vnni, NarrowPickKernels, kNarrowPickKernels)  // integers only

}  // namespace hebbline
