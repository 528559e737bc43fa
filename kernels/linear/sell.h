// The SELL-16 packing: rows sorted by their number of links, in slices of 16, as long as a slice's longest row.
//
// One step of a slice is 16 places and 16 values, one of each row; X is gathered by the places. Best for few tokens of
// sparse layers.
//
// Legend: M tokens, K columns, L steps of a slice.
#pragma once

#include <cstdint>

namespace hebbline {

inline constexpr int64_t kSliceRows = 16;

// What a kernel reads.
struct SellView {
  int64_t columns, slices;
  bool bfloat16;                   // values are bfloat16, else float32
  const int64_t* slice_offsets_S;  // first step of each slice, and the number of steps: [slices + 1]
  const uint16_t* places;          // [steps, 16]
  const void* values;              // [steps, 16]
};

namespace avx512 {
// sums [count, 16] of a slice for `count` tokens of X, 1 to 4.
void multiply_slice(const SellView& weight, int64_t slice, const float* x_MK, int64_t count, float* sums);
}  // namespace avx512

}  // namespace hebbline
