#include <immintrin.h>

#include "linear/quad.h"

namespace hebbline::avx512 {
namespace {

constexpr int64_t kRows = 16;
constexpr int64_t kMostTokens = 64;

inline __m512i load(const uint32_t* words) { return _mm512_loadu_si512(words); }
inline __m256i load8(const uint32_t* words) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)); }

// sums_W of a row for 16 x `Vectors` tokens.
template <int Vectors>
inline void multiply_row(const QuadView& weight, int64_t row, const uint32_t* tile_QW, int32_t* sums_W) {
  constexpr int kChains = Vectors >= 3 ? 1 : Vectors == 2 ? 2 : 4;
  __m512i sums[kChains][Vectors];
  for (auto& chain : sums) {
    for (__m512i& sum : chain) sum = _mm512_setzero_si512();
  }
  const auto step = [&](int64_t z, int chain) {
    const __m512i word = _mm512_set1_epi32(static_cast<int>(weight.words_Z[z]));
    const uint32_t* x = tile_QW + weight.quads_Z[z] * (16 * Vectors);
    for (int v = 0; v < Vectors; ++v) sums[chain][v] = _mm512_dpbusd_epi32(sums[chain][v], load(x + 16 * v), word);
  };
  int64_t z = weight.row_offsets[row];
  const int64_t end = weight.row_offsets[row + 1];
  for (; z + kChains <= end; z += kChains) {
    for (int chain = 0; chain < kChains; ++chain) step(z + chain, chain);
  }
  for (; z < end; ++z) step(z, 0);
  const __m512i correction = _mm512_set1_epi32(weight.corrections[row]);
  for (int v = 0; v < Vectors; ++v) {
    for (int chain = 1; chain < kChains; ++chain) sums[0][v] = _mm512_add_epi32(sums[0][v], sums[chain][v]);
    _mm512_storeu_si512(sums_W + 16 * v, _mm512_add_epi32(sums[0][v], correction));
  }
}

// The same for 8 tokens.
inline void multiply_row8(const QuadView& weight, int64_t row, const uint32_t* tile_QW, int32_t* sums_W) {
  __m256i sums[4];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const auto step = [&](int64_t z, int chain) {
    const __m256i word = _mm256_set1_epi32(static_cast<int>(weight.words_Z[z]));
    sums[chain] = _mm256_dpbusd_epi32(sums[chain], load8(tile_QW + weight.quads_Z[z] * 8), word);
  };
  int64_t z = weight.row_offsets[row];
  const int64_t end = weight.row_offsets[row + 1];
  for (; z + 4 <= end; z += 4) {
    for (int chain = 0; chain < 4; ++chain) step(z + chain, chain);
  }
  for (; z < end; ++z) step(z, 0);
  const __m256i total = _mm256_add_epi32(_mm256_add_epi32(sums[0], sums[1]), _mm256_add_epi32(sums[2], sums[3]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums_W),
                      _mm256_add_epi32(total, _mm256_set1_epi32(weight.corrections[row])));
}

void multiply_by_width(const QuadView& weight, int64_t row, const uint32_t* tile_QW, int64_t width, int32_t* sums_W) {
  switch (width) {
    case 8:
      return multiply_row8(weight, row, tile_QW, sums_W);
    case 16:
      return multiply_row<1>(weight, row, tile_QW, sums_W);
    case 32:
      return multiply_row<2>(weight, row, tile_QW, sums_W);
    case 48:
      return multiply_row<3>(weight, row, tile_QW, sums_W);
    default:
      return multiply_row<4>(weight, row, tile_QW, sums_W);
  }
}

inline __mmask16 lanes_before(int64_t left) {
  return static_cast<__mmask16>(left >= 16 ? 0xFFFF : left <= 0 ? 0 : (1U << left) - 1);
}

// 16 x 16 words, in[i] row i becomes out column i.
inline void transpose16(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

}  // namespace

void transpose_words(const uint32_t* words_MQ, int64_t stride, int64_t count, int64_t quads, int64_t width,
                     uint32_t* tile_QW) {
  for (int64_t w = 0; w < width; w += 16) {
    const __mmask16 tokens = lanes_before(width - w);
    for (int64_t q = 0; q < quads; q += 16) {
      const __mmask16 lanes = lanes_before(quads - q);
      __m512i block[16];
      for (int i = 0; i < 16; ++i) {
        block[i] =
            w + i < count ? _mm512_maskz_loadu_epi32(lanes, words_MQ + (w + i) * stride + q) : _mm512_setzero_si512();
      }
      transpose16(block);
      for (int i = 0; i < 16 && q + i < quads; ++i) {
        _mm512_mask_storeu_epi32(tile_QW + (q + i) * width + w, tokens, block[i]);
      }
    }
  }
}

void multiply_quads(const QuadView& weight, int64_t first, int64_t last, const uint32_t* tile_QW, int64_t width,
                    int64_t token, int64_t count, const QuadFinish& finish) {
  alignas(64) int32_t sums_RW[kRows][kMostTokens];
  for (int64_t n = first; n < last; ++n) multiply_by_width(weight, n, tile_QW, width, sums_RW[n - first]);
  const __mmask16 rows = lanes_before(last - first);
  const __m512 scales = _mm512_maskz_loadu_ps(rows, weight.scales + first);
  const __m512 bias =
      finish.bias_N == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(rows, finish.bias_N + first);
  for (int64_t w = 0; w < count; w += 16) {
    __m512i block[16];
    for (int i = 0; i < 16; ++i) block[i] = _mm512_loadu_si512(&sums_RW[i][w]);
    transpose16(block);
    for (int64_t i = 0; i < 16 && w + i < count; ++i) {
      const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(finish.token_scales_M[token + w + i]));
      __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(block[i]), scale);
      if (finish.bias_N != nullptr) y = _mm512_add_ps(y, bias);
      _mm512_mask_storeu_ps(finish.y_MN + (token + w + i) * weight.rows + first, rows, y);
    }
  }
}

}  // namespace hebbline::avx512
