// Nothing of the standard library is used here: what it instantiates would carry these instructions to other files.

#include <immintrin.h>

#include "scores/subset_sums.h"

namespace hebbline::avx512f {
namespace {

constexpr int64_t kGroups = 64;  // of which the sums of 4 rows, 16 KB, stay in the first cache
constexpr int kParts = kBlockColumns / 16;

// Lane p: the sum of the entries whose bits are set in p.
__m512 subset_sums(const float* entries) {
  __m512 sums = _mm512_maskz_mov_ps(0xaaaa, _mm512_set1_ps(entries[0]));
  sums = _mm512_mask_add_ps(sums, 0xcccc, sums, _mm512_set1_ps(entries[1]));
  sums = _mm512_mask_add_ps(sums, 0xf0f0, sums, _mm512_set1_ps(entries[2]));
  return _mm512_mask_add_ps(sums, 0xff00, sums, _mm512_set1_ps(entries[3]));
}

struct Tables {
  alignas(64) float lanes[kGroups][kBlockRows][16];
};

void fill(Tables& tables, const float* similar_BR, int64_t stride, int64_t groups) {
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t b = 0; b < kBlockRows; ++b) {
      _mm512_store_ps(tables.lanes[g][b], subset_sums(similar_BR + b * stride + 4 * g));
    }
  }
}

// 64 columns of 4 rows.
void add_columns(const Tables& tables, int64_t groups, const uint8_t* patterns, int64_t columns, float* sums,
                 int64_t stride) {
  __m512 total[kBlockRows][kParts] = {};
  for (int64_t g = 0; g < groups; ++g) {
    __m512i pattern[kParts];
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      const auto* from = reinterpret_cast<const __m128i*>(patterns + g * columns + 16 * part);
      pattern[part] = _mm512_cvtepu8_epi32(_mm_loadu_si128(from));
    }
#pragma GCC unroll 4
    for (int64_t b = 0; b < kBlockRows; ++b) {
      const __m512 table = _mm512_load_ps(tables.lanes[g][b]);
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        total[b][part] = _mm512_add_ps(total[b][part], _mm512_permutexvar_ps(pattern[part], table));
      }
    }
  }
#pragma GCC unroll 4
  for (int64_t b = 0; b < kBlockRows; ++b) {
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      float* place = sums + b * stride + 16 * part;
      _mm512_storeu_ps(place, _mm512_add_ps(_mm512_loadu_ps(place), total[b][part]));
    }
  }
}

// As in scores.h, of 16 nodes.
__m512 similarity(__m512i common, __m512 degree, bool ch3) {
  const __m512 one = _mm512_set1_ps(1.0F), count = _mm512_cvtepi32_ps(common);
  const __m512 external = _mm512_max_ps(_mm512_sub_ps(degree, count), one);
  const __mmask16 related = _mm512_test_epi32_mask(common, common);
  return _mm512_maskz_div_ps(related, ch3 ? one : _mm512_add_ps(count, one), external);
}

// The number of bits that `bits` shares with `low`, and 2^32 times that with `high`.
__attribute__((target("avx512vpopcntdq"))) uint64_t shared_by_vectors(const uint64_t* low, const uint64_t* high,
                                                                      const uint64_t* bits, int64_t words) {
  __m512i total = _mm512_setzero_si512();
  for (int64_t w = 0; w < words; w += kVectorWords) {
    const __m512i other = _mm512_loadu_si512(bits + w);
    const __m512i lows = _mm512_popcnt_epi64(_mm512_and_si512(other, _mm512_loadu_si512(low + w)));
    const __m512i highs = _mm512_popcnt_epi64(_mm512_and_si512(other, _mm512_loadu_si512(high + w)));
    total = _mm512_add_epi64(total, _mm512_add_epi64(lows, _mm512_slli_epi64(highs, 32)));
  }
  return static_cast<uint64_t>(_mm512_reduce_add_epi64(total));
}

// The same for processors whose vectors cannot count.
uint64_t shared_by_words(const uint64_t* low, const uint64_t* high, const uint64_t* bits, int64_t words) {
  uint64_t lows = 0, highs = 0;
  for (int64_t w = 0; w < words; ++w) {
    lows += static_cast<uint64_t>(__builtin_popcountll(low[w] & bits[w]));
    highs += static_cast<uint64_t>(__builtin_popcountll(high[w] & bits[w]));
  }
  return lows | highs << 32;
}

}  // namespace

void similarities(const uint64_t* const own[kBlockRows], const uint64_t* bits_RW, const float* degree_R, int64_t rows,
                  int64_t words, bool ch3, float* similar_BR, int64_t stride) {
  const auto count = __builtin_cpu_supports("avx512vpopcntdq") ? shared_by_vectors : shared_by_words;
  for (int64_t r = 0; r < rows; r += 16) {
    const int64_t some = rows - r < 16 ? rows - r : 16;
    alignas(64) int32_t common[kBlockRows][16] = {};
    for (int64_t lane = 0; lane < some; ++lane) {
      for (int64_t b = 0; b < kBlockRows; b += 2) {
        // Two counts in one word.
        const uint64_t both = count(own[b], own[b + 1], bits_RW + (r + lane) * words, words);
        common[b][lane] = static_cast<int32_t>(both & 0xffffffff);
        common[b + 1][lane] = static_cast<int32_t>(both >> 32);
      }
    }
    const auto lanes = static_cast<__mmask16>((1U << some) - 1);
    const __m512 degree = _mm512_maskz_loadu_ps(lanes, degree_R + r);
    for (int64_t b = 0; b < kBlockRows; ++b) {
      const __m512 similar = similarity(_mm512_load_si512(common[b]), degree, ch3);
      _mm512_mask_storeu_ps(similar_BR + b * stride + r, lanes, similar);
    }
  }
}

void add_subset_sums(const float* similar_BR, int64_t similar_stride, int64_t groups, const uint8_t* patterns_GC,
                     int64_t columns, float* sums_BC, int64_t sums_stride) {
  Tables tables;
  for (int64_t g = 0; g < groups; g += kGroups) {
    const int64_t some = groups - g < kGroups ? groups - g : kGroups;
    fill(tables, similar_BR + 4 * g, similar_stride, some);
    for (int64_t c = 0; c < columns; c += kBlockColumns) {
      add_columns(tables, some, patterns_GC + g * columns + c, columns, sums_BC + c, sums_stride);
    }
  }
}

}  // namespace hebbline::avx512f
