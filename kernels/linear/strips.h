// The packings in vectors: strips of 16 rows, one 64-byte vector for each unit of columns.
//
// A unit is as many columns as one lane of 4 bytes holds: 1 of float32, 2 of bfloat16, 4 of int8. Its vector holds 16
// rows x 1 unit, which is the order of VNNI and bfloat16 dot products and of AMX tiles: 16 vectors make a tile. X comes
// as one 4-byte word a unit, which is broadcast to the 16 rows.
//
// kTile leaves out what is not linked: a mask of a vector says where its values go ("expand"). kPanel stores whole
// vectors, only of units that have a link: for weights in blocks.
//
// Legend: M tokens, S strips, U units of columns, R 16 rows of a strip.
#pragma once

#include <cstddef>
#include <cstdint>

#include "numbers.h"

namespace hebbline {

inline constexpr int64_t kLanes = 16;      // rows of a strip, and words of a vector
inline constexpr int64_t kTileUnits = 16;  // units of a tile
inline constexpr int64_t kSegmentUnits = 128;
inline constexpr int64_t kStripTokens = 64;  // tokens whose sums a strip holds at a time

// What a lane holds. kInt4 is int8 in memory of the kernel, 4 bits in the packing.
using Kind = ValueType;

// Vectors [first, last) of a strip, at most 128, in one group of scales. Integers are summed within a segment and
// scaled at its end.
struct Segment {
  int32_t first, last;
};

// What a kernel reads. Vectors are counted within a strip; vector v of kTile is unit v.
struct StripsView {
  Kind kind;
  int64_t rows, units;              // units: padded to whole tiles
  const uint8_t* values;            // kTile: what the masks select; kPanel: 64 bytes a vector
  const int64_t* value_offsets_S;   // bytes
  const uint8_t* masks;             // kTile: 16, 32 or 64 bits a vector by kind, [S, U]; null: kPanel
  const uint32_t* vector_units;     // kPanel: the unit of each vector
  const int64_t* vector_offsets_S;  // kPanel: first vector of each strip
  const Segment* segments;
  const int64_t* segment_offsets_S;  // [S + 1]
  const float* scales;               // integers: [segments, 16]
  const int32_t* corrections;        // integers: -128 x the sum of the segment's weights, [segments, 16]
};

// What happens to the sums of a strip, for tokens [token, token + count).
struct StripFinish {
  const float* token_scales_M;  // null: 1
  const float* bias_N;          // null: 0
  float* y_MN;
};

// One instruction set's kernels.
struct StripKernels {
  // Packs a token: the words [U] of x rounded as `kind` asks, padded with what counts as 0 (integers are stored + 128,
  // to be unsigned). Returns the token's scale. `fixed_scale` > 0 replaces the token's own.
  float (*pack_token)(Kind kind, const float* x_K, int64_t columns, int64_t units, float fixed_scale,
                      uint32_t* words_U);
  // Multiplies a strip by tokens [token, token + count), count up to 64, and finishes it. words_MU holds all tokens of
  // the call, and as many more as round their number up to 8.
  void (*strip)(const StripsView& weight, int64_t strip, const uint32_t* words_MU, int64_t token, int64_t count,
                const StripFinish& finish);
};

namespace avx512 {
extern const StripKernels kStripKernels;
}
namespace avx512bf16 {
extern const StripKernels kStripKernels;
}

// Strips by AMX tiles, real or emulated. `tiles_MU` holds X in tile order: for each 16 tokens, for each tile of 16
// units, 16 tokens x 16 words; integers are signed there. Tokens are padded to whole tiles with zeros.
struct TileKernels {
  int64_t least_tokens;  // calls of fewer are left to StripKernels
  float (*pack_token)(Kind kind, const float* x_K, int64_t columns, int64_t units, float fixed_scale,
                      uint32_t* words_U);
  void (*begin)();  // before the first strip of a task, on its thread
  // Multiplies `count` strips, 1 or 2, by `tokens` tokens, up to 64, from `token`, a multiple of 64.
  void (*strips)(const StripsView& weight, int64_t strip, int64_t count, const uint32_t* tiles_MU, int64_t token,
                 int64_t tokens, const StripFinish& finish);
  void (*end)();
};

namespace amx {
extern const TileKernels kTileKernels;
}
namespace emulated {
extern const TileKernels kTileKernels;
}

}  // namespace hebbline
