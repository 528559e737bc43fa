#include <immintrin.h>

#include <utility>

#include "linear/quad.h"

namespace hebbline::avx2 {
#include "linear/finish.inc"
#include "simd/unrolled.inc"

namespace {

inline __m128i load(const void* data) { return _mm_loadu_si128(static_cast<const __m128i*>(data)); }
inline __m256i load_wide(const void* data) { return _mm256_loadu_si256(static_cast<const __m256i*>(data)); }

inline __m256i load_both(const void* low, const void* high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load(low)), load(high), 1);
}

template <int kIndex>
using Index = std::integral_constant<int, kIndex>;

// The row of X^T of link `i` of a four.
template <int64_t kWidth>
inline const int8_t* row_of(const int8_t* block, const uint16_t* places, int i) {
  return block + static_cast<uint64_t>(places[i]) * (kWidth / kQuadPlaceStep);
}

inline __m256i multiply_add(__m256i sum, __m256i magnitudes, __m256i x) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(magnitudes, x), _mm256_set1_epi16(1)));
}

// Calls add(constant, bytes in fours) for the low halves of the lanes of four vectors and, where `kBoth`, the high
// ones.
template <int kFirst, bool kBoth, class Add>
inline __attribute__((always_inline)) void interleave(__m256i a, __m256i b, __m256i c, __m256i d, const Add& add) {
  const __m256i low_ab = _mm256_unpacklo_epi8(a, b), low_cd = _mm256_unpacklo_epi8(c, d);
  add(Index<kFirst>{}, _mm256_unpacklo_epi16(low_ab, low_cd));
  add(Index<kFirst + 1>{}, _mm256_unpackhi_epi16(low_ab, low_cd));
  if constexpr (kBoth) {
    const __m256i high_ab = _mm256_unpackhi_epi8(a, b), high_cd = _mm256_unpackhi_epi8(c, d);
    add(Index<kFirst + 2>{}, _mm256_unpacklo_epi16(high_ab, high_cd));
    add(Index<kFirst + 3>{}, _mm256_unpackhi_epi16(high_ab, high_cd));
  }
}

// A tile of 8 or 16 tokens: two fours at a time, one in each half of the vectors.
template <int64_t kTokens>
struct Few {
  static constexpr int64_t kWidth = kTokens, kFours = 2;
  static constexpr int kSums = kTokens / 4;

  static inline __m256i magnitudes(const uint8_t* stored) {
    int64_t both;
    __builtin_memcpy(&both, stored, sizeof both);
    const __m256i order = _mm256_setr_epi32(0x03020100, 0x03020100, 0x03020100, 0x03020100, 0x07060504, 0x07060504,
                                            0x07060504, 0x07060504);
    return _mm256_shuffle_epi8(_mm256_set1_epi64x(both), order);
  }

  template <class Add>
  static inline __attribute__((always_inline)) void rows(const int8_t* block, const uint16_t* places, const Add& add) {
    const auto both = [&](int i) __attribute__((always_inline)) {
      return load_both(row_of<kWidth>(block, places, i), row_of<kWidth>(block, places + 4, i));
    };
    interleave<0, kTokens == 16>(both(0), both(1), both(2), both(3), add);
  }

  // The halves of a sum are added at the end.
  static inline __m256i first_sum(int32_t negative) {
    return _mm256_inserti128_si256(_mm256_setzero_si256(), _mm_set1_epi32(negative), 0);
  }

  static inline void finish(const __m256i* sums, float scale, float* sums_W) {
    unrolled<kSums>([&](auto i) {
      const __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums[i]), _mm256_extracti128_si256(sums[i], 1));
      _mm_storeu_ps(sums_W + 4 * i,
                    _mm_fmadd_ps(_mm_cvtepi32_ps(sum), _mm_set1_ps(scale), _mm_loadu_ps(sums_W + 4 * i)));
    });
  }
};

// A tile of 32 tokens. Interleaving goes by halves of a vector; the order of tokens in X^T makes the sums come out in
// order.
struct Many {
  static constexpr int64_t kWidth = 32, kFours = 1;
  static constexpr int kSums = 4;

  static inline __m256i magnitudes(const uint8_t* stored) {
    int four;
    __builtin_memcpy(&four, stored, sizeof four);
    return _mm256_set1_epi32(four);
  }

  template <class Add>
  static inline __attribute__((always_inline)) void rows(const int8_t* block, const uint16_t* places, const Add& add) {
    const auto row = [&](int i) __attribute__((always_inline)) { return load_wide(row_of<kWidth>(block, places, i)); };
    interleave<0, true>(row(0), row(1), row(2), row(3), add);
  }

  static inline __m256i first_sum(int32_t negative) { return _mm256_set1_epi32(negative); }

  static inline void finish(const __m256i* sums, float scale, float* sums_W) {
    unrolled<kSums>([&](auto i) {
      float* to = sums_W + 8 * i;
      _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[i]), _mm256_set1_ps(scale), _mm256_loadu_ps(to)));
    });
  }
};

// sums_W += a row's `fours` in a block times the tile.
template <class Tile>
inline void add_row(const uint16_t* places, const uint8_t* magnitudes, int64_t fours, const int8_t* block,
                    int32_t negative, float scale, float* sums_W) {
  __m256i sums[Tile::kSums];
  unrolled<Tile::kSums>([&](auto i) { sums[i] = Tile::first_sum(negative); });
  for (int64_t q = 0; q < fours; q += Tile::kFours) {
    _mm_prefetch(reinterpret_cast<const char*>(places + 4 * q + 512), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(magnitudes + 4 * q + 512), _MM_HINT_T0);
    const __m256i weights = Tile::magnitudes(magnitudes + 4 * q);
    Tile::rows(block, places + 4 * q, [&](auto i, __m256i bytes) __attribute__((always_inline)) {
      __m256i sum = multiply_add(sums[i], weights, bytes);
      in_turn(sum);
      sums[i] = sum;
    });
  }
  Tile::finish(sums, scale, sums_W);
}

template <class Tile>
void multiply_strip(const QuadView& weight, int64_t strip, const QuadTile& tile, int64_t rows, float* sums_RW) {
  for (int64_t i = 0; i < rows * Tile::kWidth; ++i) sums_RW[i] = 0;
  const uint16_t* places = weight.places_Q4 + weight.strip_offsets_S[strip] * 4;
  const uint8_t* magnitudes = weight.magnitudes_Q4 + weight.strip_offsets_S[strip] * 4;
  for (int64_t block = 0; block < weight.blocks; ++block) {
    const int64_t segments = (strip * weight.blocks + block) * kStripRows;
    const int8_t* x = tile.data + block * 2 * weight.block_width * Tile::kWidth;
    for (int64_t r = 0; r < rows && weight.counts_SBR[segments + r] > 0; ++r) {
      const int64_t fours = weight.counts_SBR[segments + r], stored = (fours + 1) / 2 * 2;
      const float scale = weight.scales_SBR == nullptr ? 1 : weight.scales_SBR[segments + r];
      add_row<Tile>(places, magnitudes, fours, x, weight.negative_SBR[segments + r], scale,
                    sums_RW + weight.rows_SBR[segments + r] * Tile::kWidth);
      places += 4 * stored;
      magnitudes += 4 * stored;
    }
  }
}

void strip(const QuadView& weight, int64_t strip, const QuadTile& tile, const Finish& finish) {
  alignas(64) float sums_RW[kStripRows * kQuadTokens];
  const int64_t first = strip * kStripRows;
  const int64_t rows = weight.rows - first < kStripRows ? weight.rows - first : kStripRows;
  const auto multiply = tile.width == 8    ? multiply_strip<Few<8>>
                        : tile.width == 16 ? multiply_strip<Few<16>>
                                           : multiply_strip<Many>;
  multiply(weight, strip, tile, rows, sums_RW);
  finish_strip({weight.rows, first, rows}, {tile.width, tile.token, tile.count}, sums_RW, finish);
}

inline void store(int8_t* data, __m128i vector) { _mm_storeu_si128(reinterpret_cast<__m128i*>(data), vector); }

// Fours of tokens, one a column: columns[i] holds 4 columns of 4 tokens, of 16 columns.
inline void interleave_four(const int8_t* const* rows, __m128i* columns) {
  const __m128i a = load(rows[0]), b = load(rows[1]), c = load(rows[2]), d = load(rows[3]);
  const __m128i low_ab = _mm_unpacklo_epi8(a, b), high_ab = _mm_unpackhi_epi8(a, b);
  const __m128i low_cd = _mm_unpacklo_epi8(c, d), high_cd = _mm_unpackhi_epi8(c, d);
  columns[0] = _mm_unpacklo_epi16(low_ab, low_cd);
  columns[1] = _mm_unpackhi_epi16(low_ab, low_cd);
  columns[2] = _mm_unpacklo_epi16(high_ab, high_cd);
  columns[3] = _mm_unpackhi_epi16(high_ab, high_cd);
}

// out[k][w] = rows[w][k] for 16 columns and 16 tokens, and its complement `further` bytes on; `width`: bytes of a row.
inline void transpose16(const int8_t* const* rows, int64_t width, int64_t further, int8_t* out) {
  const __m128i ones = _mm_set1_epi8(-1);
  __m128i fours[4][4];
  unrolled<4>([&](auto i) { interleave_four(rows + 4 * i, fours[i]); });
  unrolled<4>([&](auto i) {
    const __m128i low01 = _mm_unpacklo_epi32(fours[0][i], fours[1][i]),
                  high01 = _mm_unpackhi_epi32(fours[0][i], fours[1][i]);
    const __m128i low23 = _mm_unpacklo_epi32(fours[2][i], fours[3][i]),
                  high23 = _mm_unpackhi_epi32(fours[2][i], fours[3][i]);
    const __m128i columns[4] = {_mm_unpacklo_epi64(low01, low23), _mm_unpackhi_epi64(low01, low23),
                                _mm_unpacklo_epi64(high01, high23), _mm_unpackhi_epi64(high01, high23)};
    unrolled<4>([&](auto k) {
      int8_t* to = out + (4 * i + k) * width;
      if (width == 8) {
        _mm_storel_epi64(reinterpret_cast<__m128i*>(to), columns[k]);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(to + further), _mm_xor_si128(columns[k], ones));
      } else {
        store(to, columns[k]);
        store(to + further, _mm_xor_si128(columns[k], ones));
      }
    });
  });
}

// The token at byte `w` of 32: interleaving of Many takes them in this order.
constexpr int64_t token_at(int64_t w) { return w % 16 / 4 * 8 + w / 16 * 4 + w % 4; }

void transpose(const int8_t* x_MK, int64_t stride, const int8_t* zeros, int64_t block, int64_t block_width,
               const QuadTile& tile, int8_t* data) {
  int8_t* out = data + block * 2 * block_width * tile.width;
  for (int64_t part = 0; part < tile.width; part += 16) {
    const int8_t* rows[16];
    for (int64_t w = 0; w < 16; ++w) {
      const int64_t m = tile.width < 32 ? w : token_at(part + w);
      rows[w] = (m < tile.count ? x_MK + (tile.token + m) * stride : zeros) + block * block_width;
    }
    for (int64_t k = 0; k < block_width; k += 16) {
      transpose16(rows, tile.width, block_width * tile.width, out + k * tile.width + part);
      for (const int8_t*& row : rows) row += 16;
    }
  }
}

}  // namespace

const QuadKernels kQuadKernels{transpose, strip};

}  // namespace hebbline::avx2
