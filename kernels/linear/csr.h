// The CSR packing and the kernels that multiply by it.
//
// Rows are taken in strips of 64, columns in blocks narrow enough for their part of X^T to stay in the first-level
// cache. Links are ordered by strip, block, row, column.
//
// Legend: K columns, M tokens, W tokens of a tile, R rows of a strip, Z entries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "platform/memory.h"

namespace hebbline {

inline constexpr int64_t kStripRows = 64;
inline constexpr int64_t kTileTokens = 64;

// How an entry's payload is stored.
enum class Payload { kFloat32, kBfloat16, kQuad };

// What a kernel reads.
struct CsrView {
  int64_t rows, columns, strips, blocks, block_width;
  const uint16_t* places_Z;        // column within its block
  const void* payload_Z;           // by Payload
  const uint16_t* counts_SBR;      // entries of each row in each block: [strips, blocks, 64]
  const int64_t* strip_offsets_S;  // first entry of each strip
};

// What happens to the sums of a strip.
struct Finish {
  const float* row_scales_N;    // null: 1
  const float* token_scales_M;  // null: 1
  const float* bias_N;          // null: 0
  float* y_MN;
};

// One instruction set's kernels. A tile is `width` tokens of X^T, float [K, width]; width is 1, 8, or a multiple of 16
// up to 64.
struct CsrKernels {
  // Writes columns [first, last) of the tile of tokens [token, token + count); the tokens past `count` are 0.
  void (*transpose)(const float* x_MK, int64_t columns, int64_t token, int64_t count, int64_t width, int64_t first,
                    int64_t last, float* tile_KW);
  // Multiplies a strip by a tile and finishes it for tokens [token, token + count).
  void (*strip)(const CsrView& weight, Payload payload, int64_t strip, const float* tile_KW, int64_t width,
                int64_t token, int64_t count, const Finish& finish);
};

namespace scalar {
extern const CsrKernels kCsrKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const CsrKernels kCsrKernels;
}
namespace avx512 {
extern const CsrKernels kCsrKernels;
}
#endif

}  // namespace hebbline
