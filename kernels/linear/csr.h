// The CSR packing and the kernels that multiply by it.
//
// Rows are taken in strips of 64, columns in blocks; entries are ordered by strip, block, row, column, so that memory
// is read in one stream. The rows of a strip with most entries in a block come first there: loops over them end where
// those before ended, as the processor expects. Blocks keep a row's part of X^T in cache where tokens are many, and are
// wide enough for the row's sums to pay for their way in and out.
//
// Legend: K columns, M tokens, W tokens of a tile, R rows of a strip, S strips, P panels, B blocks of a panel, Z
// entries.
#pragma once

#include <cstddef>
#include <cstdint>

#include "numbers.h"
#include "platform/variants.h"

namespace hebbline {

inline constexpr int64_t kStripRows = 64;
inline constexpr int64_t kTileTokens = 64;        // of the widest tile
inline constexpr int64_t kWidestBlock = 1 << 15;  // places and counts within a block are uint16

// How an entry's payload is stored: kFloat32 or kBfloat16.
using Payload = ValueType;

// What a kernel reads.
struct CsrView {
  int64_t rows, blocks, block_width;
  Payload payload;
  const uint16_t* places_Z;  // column within its block
  const void* payload_Z;
  const uint16_t* counts_SBR;      // entries of a row in each block, falling
  const uint8_t* rows_SBR;         // which row of the strip
  const int64_t* strip_offsets_S;  // first entry of each strip
};

// Tokens [token, token + count) of X^T, [K, width]: floats, or bfloat16 where `halves`, in an order of the kernels'
// own. Width is 1, 4, 8, or a multiple of 16 up to the kernels' widest; of halves, 32 or 64.
struct CsrTile {
  const float* data_KW;
  int64_t width;
  bool halves;
  int64_t token, count;
};

// What happens to the sums of a strip.
struct Finish {
  const float* row_scales_N;    // null: 1
  const float* token_scales_M;  // null: 1
  const float* bias_N;          // null: 0
  float* y_MN;
};

// One instruction set's kernels.
struct CsrKernels {
  bool halves;          // tiles of bfloat16 are known
  int64_t tile_tokens;  // of the widest tile: as many as the registers hold sums of, up to kTileTokens
  // Writes columns [first, last) of a tile; the tokens past `count` are 0. X is [M, stride].
  void (*transpose)(const float* x_MK, int64_t stride, int64_t first, int64_t last, const CsrTile& tile,
                    float* data_KW);
  // Multiplies a strip by a tile and finishes it.
  void (*strip)(const CsrView& weight, int64_t strip, const CsrTile& tile, const Finish& finish);
};

HEBBLINE_DECLARE(CsrKernels, kCsrKernels)
HEBBLINE_DECLARE_IN(avx512bf16, CsrKernels, kCsrKernels)

}  // namespace hebbline
