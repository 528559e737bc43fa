// Fours of links by the dot product of bytes. It takes unsigned by unsigned ones, so that a magnitude of 128 is one:
// X^T is held plus 128, and 128 times the magnitudes' sum comes off at the end.

#include <arm_neon.h>

#include <utility>

#include "linear/quad.h"

namespace hebbline::neondot {
#include "linear/finish.inc"
#include "simd/unrolled.inc"

namespace {

constexpr int kOffset = 128;

// 16 tokens of a row of X^T; of a tile of 8 tokens the upper half is of the next row, and is not used.
inline uint8x16_t load(const int8_t* row) { return vld1q_u8(reinterpret_cast<const uint8_t*>(row)); }

// The row of X^T of link `i` of a four.
template <int64_t kWidth>
inline const int8_t* row_of(const int8_t* block, const uint16_t* places, int i) {
  return block + static_cast<uint64_t>(places[i]) * (kWidth / kQuadPlaceStep);
}

// Vectors of 4 tokens x 4 links of four rows of 16 tokens, or of their first 8 where not `kAll`.
template <bool kAll>
inline void interleave(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d, uint8x16_t* fours) {
  const auto wide = [](uint8x16_t bytes) { return vreinterpretq_u16_u8(bytes); };
  const auto bytes = [](uint16x8_t pairs) { return vreinterpretq_u8_u16(pairs); };
  const uint16x8_t low_ab = wide(vzip1q_u8(a, b)), low_cd = wide(vzip1q_u8(c, d));
  fours[0] = bytes(vzip1q_u16(low_ab, low_cd));
  fours[1] = bytes(vzip2q_u16(low_ab, low_cd));
  if constexpr (kAll) {
    const uint16x8_t high_ab = wide(vzip2q_u8(a, b)), high_cd = wide(vzip2q_u8(c, d));
    fours[2] = bytes(vzip1q_u16(high_ab, high_cd));
    fours[3] = bytes(vzip2q_u16(high_ab, high_cd));
  }
}

// sums_W += a row's `fours` in a block times a tile of kWidth tokens.
template <int64_t kWidth>
inline void add_row(const uint16_t* places, const uint8_t* magnitudes, int64_t fours, const int8_t* block,
                    int32_t negative, float scale, float* sums_W) {
  constexpr int kSums = kWidth / 4, kParts = kWidth < 16 ? 1 : kWidth / 16, kPartSums = kSums / kParts;
  uint32x4_t sums[kSums], weight_sum = vdupq_n_u32(0);
  unrolled<kSums>([&](auto i) { sums[i] = vdupq_n_u32(0); });
  for (int64_t q = 0; q < fours; ++q, places += 4, magnitudes += 4) {
    uint32_t four;
    __builtin_memcpy(&four, magnitudes, sizeof four);
    const uint8x16_t weights = vreinterpretq_u8_u32(vdupq_n_u32(four));
    weight_sum = vdotq_u32(weight_sum, weights, vdupq_n_u8(1));
    unrolled<kParts>([&](auto part) __attribute__((always_inline)) {
      const auto row = [&](int i) { return load(row_of<kWidth>(block, places, i) + 16 * part); };
      uint8x16_t x[4];
      interleave<kPartSums == 4>(row(0), row(1), row(2), row(3), x);
      unrolled<kPartSums>(
          [&](auto i) { sums[part * kPartSums + i] = vdotq_u32(sums[part * kPartSums + i], weights, x[i]); });
    });
  }
  const int32x4_t correction =
      vsubq_s32(vdupq_n_s32(negative), vreinterpretq_s32_u32(vmulq_n_u32(weight_sum, kOffset)));
  unrolled<kSums>([&](auto i) {
    const int32x4_t sum = vaddq_s32(vreinterpretq_s32_u32(sums[i]), correction);
    vst1q_f32(sums_W + 4 * i, vfmaq_n_f32(vld1q_f32(sums_W + 4 * i), vcvtq_f32_s32(sum), scale));
  });
}

template <int64_t kWidth>
void multiply_strip(const QuadView& weight, int64_t strip, const QuadTile& tile, int64_t rows, float* sums_RW) {
  for (int64_t i = 0; i < rows * kWidth; ++i) sums_RW[i] = 0;
  const uint16_t* places = weight.places_Q4 + weight.strip_offsets_S[strip] * 4;
  const uint8_t* magnitudes = weight.magnitudes_Q4 + weight.strip_offsets_S[strip] * 4;
  for (int64_t block = 0; block < weight.blocks; ++block) {
    const int64_t segments = (strip * weight.blocks + block) * kStripRows;
    const int8_t* x = tile.data + block * 2 * weight.block_width * kWidth;
    for (int64_t r = 0; r < rows && weight.counts_SBR[segments + r] > 0; ++r) {
      const int64_t fours = weight.counts_SBR[segments + r], stored = (fours + 1) / 2 * 2;
      const float scale = weight.scales_SBR == nullptr ? 1 : weight.scales_SBR[segments + r];
      add_row<kWidth>(places, magnitudes, fours, x, weight.negative_SBR[segments + r], scale,
                      sums_RW + weight.rows_SBR[segments + r] * kWidth);
      places += 4 * stored;
      magnitudes += 4 * stored;
    }
  }
}

void strip(const QuadView& weight, int64_t strip, const QuadTile& tile, const Finish& finish) {
  alignas(64) float sums_RW[kStripRows * kQuadTokens];
  const int64_t first = strip * kStripRows;
  const int64_t rows = weight.rows - first < kStripRows ? weight.rows - first : kStripRows;
  const auto multiply = tile.width == 8    ? multiply_strip<8>
                        : tile.width == 16 ? multiply_strip<16>
                                           : multiply_strip<32>;
  multiply(weight, strip, tile, rows, sums_RW);
  finish_strip({weight.rows, first, rows}, {tile.width, tile.token, tile.count}, sums_RW, finish);
}

// Rows of X^T plus 128 and, `further` bytes on, of its complement plus 128, for 8 tokens and 16 columns.
inline void transpose_8x16(const int8_t* const* rows, int64_t width, int64_t further, int8_t* out) {
  for (int64_t k = 0; k < 16; ++k) {
    for (int64_t w = 0; w < 8; ++w) {
      const auto x = static_cast<uint8_t>(rows[w][k]);
      out[k * width + w] = static_cast<int8_t>(x ^ kOffset);
      out[k * width + w + further] = static_cast<int8_t>(~x ^ kOffset);
    }
  }
}

void transpose(const int8_t* x_MK, int64_t stride, const int8_t* zeros, int64_t block, int64_t block_width,
               const QuadTile& tile, int8_t* data) {
  int8_t* out = data + block * 2 * block_width * tile.width;
  for (int64_t part = 0; part < tile.width; part += 8) {
    const int8_t* rows[8];
    for (int64_t w = 0; w < 8; ++w) {
      const int64_t m = part + w;
      rows[w] = (m < tile.count ? x_MK + (tile.token + m) * stride : zeros) + block * block_width;
    }
    for (int64_t k = 0; k < block_width; k += 16) {
      transpose_8x16(rows, tile.width, block_width * tile.width, out + k * tile.width + part);
      for (const int8_t*& row : rows) row += 16;
    }
  }
}

}  // namespace

const QuadKernels kQuadKernels{transpose, strip};

}  // namespace hebbline::neondot
