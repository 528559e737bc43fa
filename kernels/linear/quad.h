// The packing of links by rows in fours, for integers and several tokens: a product of bytes adds four links at once.
//
// X^T is held as bytes, one row of tokens a column, each block of columns beside the complement of its bits, which is
// -X - 1: a link of negative weight refers to the latter, so that weights are magnitudes, as the product of unsigned by
// signed bytes asks, and a row's negative magnitudes make up for the 1. (-X itself is no byte where X is -128.) Four
// rows of X^T are interleaved to the fours of bytes that the product takes.
//
// Rows are taken in strips of 64, columns in blocks, as in csr.h; the rows of a strip with most fours in a block come
// first there.
//
// Legend: K columns, M tokens, W tokens of a tile, R rows of a strip, S strips, B blocks, Q fours.
#pragma once

#include <cstddef>
#include <cstdint>

#include "linear/csr.h"

namespace hebbline {

inline constexpr int64_t kQuadTokens = 32;    // of the widest tile
inline constexpr int64_t kQuadPlaceStep = 4;  // places are stored times 4: times 1/4 of a row's bytes is its offset
inline constexpr int64_t kWidestQuadBlock = 1 << 13;  // places are uint16
inline constexpr int64_t kQuadPadding = 16;           // bytes that kernels may read past a tile

// What a kernel reads.
struct QuadView {
  int64_t rows, blocks, block_width;
  const uint16_t* places_Q4;       // 4 x the row of X^T within its block: the column, + block_width where negative
  const uint8_t* magnitudes_Q4;    // a row's links in a block are filled up with 0 to an even number of fours
  const uint16_t* counts_SBR;      // fours of a row in each block, falling
  const uint8_t* rows_SBR;         // which row of the strip
  const int32_t* negative_SBR;     // sums of the magnitudes of a row's negative weights in each block
  const float* scales_SBR;         // of groups; null: 1
  const int64_t* strip_offsets_S;  // first four of each strip
};

// Tokens [token, token + count) of X^T: [B, 2, block_width, width] bytes. Width is 8, 16 or 32; the order of tokens
// in a row is of the kernels' own.
struct QuadTile {
  const int8_t* data;
  int64_t width, token, count;
};

// The row of X^T of link `i` of a four. Static: see numbers.h.
template <int64_t kWidth>
static inline const int8_t* row_of(const int8_t* block, const uint16_t* places, int i) {
  return block + static_cast<uint64_t>(places[i]) * (kWidth / kQuadPlaceStep);
}

struct QuadKernels {
  // Writes block `block` of a tile from rows of X, `stride` bytes apart, of which `zeros` is one of zeros.
  void (*transpose)(const int8_t* x_MK, int64_t stride, const int8_t* zeros, int64_t block, int64_t block_width,
                    const QuadTile& tile, int8_t* data);
  // Multiplies a strip by a tile and finishes it.
  void (*strip)(const QuadView& weight, int64_t strip, const QuadTile& tile, const Finish& finish);
};

HEBBLINE_DECLARE_IN(avx2, QuadKernels, kQuadKernels)
HEBBLINE_DECLARE_IN(avx2vnni, QuadKernels, kQuadKernels)
HEBBLINE_DECLARE_IN(neondot, QuadKernels, kQuadKernels)
HEBBLINE_DECLARE_IN(neoni8mm, QuadKernels, kQuadKernels)

}  // namespace hebbline
