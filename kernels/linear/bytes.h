// X as the kernels of narrow vectors take it: tokens rounded to signed bytes, or to bfloat16.
//
// Legend: M tokens, K columns.
#pragma once

#include <cstdint>

#include "linear/packing.h"
#include "platform/variants.h"

namespace hebbline {

// One instruction set's kernel.
struct ByteKernels {
  // Rounds a token to whole numbers from -128 to 127, zeros up to column `padded`, a multiple of 32, and adds 128 to
  // all where `is_unsigned`. Returns its scale: `fixed_scale` where that is above 0, else its own, by its largest
  // magnitude.
  float (*quantise)(const float* x_K, int64_t columns, int64_t padded, float fixed_scale, bool is_unsigned,
                    int8_t* out_K);
  // Rounds a token to bfloat16, to nearest even, with the like zeros. NaN stays NaN.
  void (*halve)(const float* x_K, int64_t columns, int64_t padded, uint16_t* out_K);
};

// Rows `stride` bytes apart, of zeros after the columns; row M is of 0 bytes throughout. In scratch memory of the
// calling thread until its next call.
struct ByteActivations {
  const int8_t* x_MK;
  int64_t stride;
  const float* scales_M;
};

// `reach`: columns that kernels may read of a row, at least K.
ByteActivations quantise_tokens(const ByteKernels& kernels, const Call& call, int64_t columns, int64_t reach,
                                bool is_unsigned, const Parallel& parallel);

// Rows `stride` numbers apart, of zeros after the columns; in the same memory.
struct HalfActivations {
  const uint16_t* x_MK;
  int64_t stride;
};
HalfActivations halve_tokens(const ByteKernels& kernels, const Call& call, int64_t columns, int64_t reach,
                             const Parallel& parallel);

// Of AVX2, or of NEON with its dot product.
HEBBLINE_DECLARE_IN(avx2, ByteKernels, kByteKernels)
HEBBLINE_DECLARE_IN(neondot, ByteKernels, kByteKernels)

}  // namespace hebbline
