// The quad packing: links of int8 weights by aligned groups of four columns.
//
// An entry is up to four neighbouring links of a row, absent ones 0, in one 4-byte word: one VNNI step multiplies it by
// four values of each of 16 tokens. X is transposed by quads of columns: byte [K / 4, W, 4], stored + 128.
//
// Legend: Q quads of columns, W tokens of a tile, Z entries.
#pragma once

#include <cstdint>

namespace hebbline {

// What a kernel reads. Entries are in order of rows, quads rising in each.
struct QuadView {
  int64_t rows;
  const int64_t* row_offsets;  // [N + 1]
  const uint16_t* quads_Z;
  const uint32_t* words_Z;
  const int32_t* corrections;  // -128 x the sum of the row's weights
  const float* scales;         // [N]
};

// What happens to the sums of rows.
struct QuadFinish {
  const float* token_scales_M;
  const float* bias_N;  // null: 0
  float* y_MN;
};

namespace avx512 {
// Lays out words [count, quads] of packed tokens as a tile [quads, width]; tokens past `count` are 0.
void transpose_words(const uint32_t* words_MQ, int64_t stride, int64_t count, int64_t quads, int64_t width,
                     uint32_t* tile_QW);

// Multiplies rows [first, last), at most 16, by a tile of `width` tokens (8, or a multiple of 16 up to 64), and
// finishes tokens [token, token + count).
void multiply_quads(const QuadView& weight, int64_t first, int64_t last, const uint32_t* tile_QW, int64_t width,
                    int64_t token, int64_t count, const QuadFinish& finish);
}  // namespace avx512

}  // namespace hebbline
