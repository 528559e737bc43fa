#include <immintrin.h>

#include <utility>

#include "linear/pick_narrow.h"

namespace hebbline::avx2 {
#include "simd/unrolled.inc"

namespace {

inline __m256i load(const void* data) { return _mm256_loadu_si256(static_cast<const __m256i*>(data)); }

// The half bytes of 16 bytes: low halves, then high ones.
inline __m256i load_halves(const uint8_t* data) {
  const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
  const __m256i wide = _mm256_set_m128i(_mm_srli_epi16(both, 4), both);
  return _mm256_and_si256(wide, _mm256_set1_epi8(15));
}

inline __m256i load_window(const uint8_t* x) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}

// Steps come in three streams beside the windows of several tokens, more than the processor follows by itself.
constexpr int64_t kPrefetchedSteps = 64;
constexpr int kPrefetchedFromTokens = 4;

// Always inline: GCC takes a function that only prefetches for one without effect, and drops calls of it.
inline __attribute__((always_inline)) void prefetch(const uint8_t* data) {
  _mm_prefetch(reinterpret_cast<const char*>(data), _MM_HINT_T0);
}

// Places of a step as byte permutations take them, and what they pick of a window. An index with its highest bit set
// gives 0.
template <bool kBroad>
struct Places;

template <>
struct Places<false> {
  static constexpr int64_t kBytes = 16;
  __m256i places;
  explicit Places(const uint8_t* stored) : places(load_halves(stored)) {}
  explicit Places(__m256i bytes) : places(bytes) {}
  __m256i pick(const uint8_t* window) const { return _mm256_shuffle_epi8(load_window(window), places); }
};

template <>
struct Places<true> {
  static constexpr int64_t kBytes = 32;
  __m256i low, high;
  explicit Places(const uint8_t* stored) : Places(load(stored)) {}
  explicit Places(__m256i bytes)
      : low(_mm256_add_epi8(bytes, _mm256_set1_epi8(0x70))), high(_mm256_sub_epi8(bytes, _mm256_set1_epi8(16))) {}
  __m256i pick(const uint8_t* window) const {
    return _mm256_or_si256(_mm256_shuffle_epi8(load_window(window), low),
                           _mm256_shuffle_epi8(load_window(window + 16), high));
  }
};

// The same for numbers of two bytes, of whose places the first is stored.
template <bool kBroad>
inline Places<kBroad> half_places(const uint8_t* stored) {
  const __m256i first = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(stored)));
  const __m256i both = _mm256_add_epi16(_mm256_mullo_epi16(first, _mm256_set1_epi16(0x101)), _mm256_set1_epi16(0x100));
  return Places<kBroad>(both);
}

template <bool kHalves>
inline __m256i load_values(const uint8_t* values) {
  if constexpr (kHalves) return _mm256_sub_epi8(load_halves(values), _mm256_set1_epi8(8));
  return load(values);
}

// sum + weights x X. Products take one unsigned operand, so the sign of a weight goes to X: the complement of its bits
// is -X - 1, and corrections make up for the 1. (The processor's own change of sign competes with products.)
inline __m256i multiply_add(__m256i sum, __m256i magnitudes, __m256i negative, __m256i x) {
  const __m256i pairs = _mm256_maddubs_epi16(magnitudes, _mm256_xor_si256(x, negative));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// totals_M += segment `s` times `Tokens` tokens.
template <bool kBroad, bool kHalves, int Tokens>
inline void add_segment(const NarrowPickView& weight, int64_t s, const uint8_t* x_MK, int64_t stride,
                        __m256* totals_M) {
  constexpr int64_t kPlaceBytes = Places<kBroad>::kBytes, kValueBytes = kHalves ? 16 : 32;
  __m256i sums[Tokens];
  unrolled<Tokens>([&](auto m) { sums[m] = load(weight.corrections + s * kNarrowRows); });
  const uint16_t* windows_T = weight.windows_T;
  const uint8_t *all_places = weight.places, *all_values = weight.values;
  const int64_t last = weight.segments[s].last;
  for (int64_t t = weight.segments[s].first; t < last; ++t) {
    if constexpr (Tokens >= kPrefetchedFromTokens) {
      prefetch(all_values + (t + kPrefetchedSteps) * kValueBytes);
      prefetch(all_places + (t + kPrefetchedSteps) * kPlaceBytes);
    }
    const Places<kBroad> places(all_places + t * kPlaceBytes);
    const __m256i weights = load_values<kHalves>(all_values + t * kValueBytes);
    const __m256i magnitudes = _mm256_abs_epi8(weights);
    const __m256i negative = _mm256_cmpgt_epi8(_mm256_setzero_si256(), weights);
    const uint8_t* window = x_MK + windows_T[t];
    unrolled<Tokens>([&](auto m) {
      __m256i sum = multiply_add(sums[m], magnitudes, negative, places.pick(window + m * stride));
      in_turn(sum);
      sums[m] = sum;
    });
  }
  const __m256 scales = _mm256_loadu_ps(weight.scales + s * kNarrowRows);
  unrolled<Tokens>([&](auto m) { totals_M[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[m]), scales, totals_M[m]); });
}

inline __m256 even_halves(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline __m256 odd_halves(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
}

// The same for bfloat16, of which a lane holds two.
template <bool kBroad, int Tokens>
inline void add_half_segment(const NarrowPickView& weight, int64_t s, const uint8_t* x_MK, int64_t stride,
                             __m256* totals_M) {
  constexpr int64_t kPlaceBytes = 16, kValueBytes = 32;
  constexpr int kChains = Tokens < 8 ? 2 : 1;  // hide the latency of a product
  __m256 sums[kChains * Tokens];
  unrolled<kChains * Tokens>([&](auto i) { sums[i] = _mm256_setzero_ps(); });
  const uint16_t* windows_T = weight.windows_T;
  const uint8_t *all_places = weight.places, *all_values = weight.values;
  const int64_t last = weight.segments[s].last;
  for (int64_t t = weight.segments[s].first; t < last; ++t) {
    prefetch(all_values + (t + kPrefetchedSteps) * kValueBytes);
    prefetch(all_places + (t + kPrefetchedSteps) * kPlaceBytes);
    const auto places = half_places<kBroad>(all_places + t * kPlaceBytes);
    const __m256i weights = load(all_values + t * kValueBytes);
    const __m256 even = even_halves(weights), odd = odd_halves(weights);
    const uint8_t* window = x_MK + 2 * windows_T[t];
    unrolled<Tokens>([&](auto m) {
      const __m256i x = places.pick(window + m * stride);
      constexpr int kOdd = (kChains - 1) * Tokens + m;
      __m256 sum = _mm256_fmadd_ps(even, even_halves(x), sums[m]);
      sums[m] = sum;
      sum = _mm256_fmadd_ps(odd, odd_halves(x), sums[kOdd]);
      in_turn(sum);
      sums[kOdd] = sum;
    });
  }
  unrolled<Tokens>([&](auto m) {
    if constexpr (kChains == 2) sums[m] = _mm256_add_ps(sums[m], sums[Tokens + m]);
    totals_M[m] = _mm256_add_ps(totals_M[m], sums[m]);
  });
}

// The same for float32: one link of a row in a step, and a permutation across the whole vector.
template <int Tokens>
inline void add_float_segment(const NarrowPickView& weight, int64_t s, const uint8_t* x_MK, int64_t stride,
                              __m256* totals_M) {
  constexpr int64_t kPlaceBytes = 4, kValueBytes = 32;
  constexpr int kChains = Tokens >= 4 ? 1 : 4 / Tokens;  // hide the latency of a product
  const __m256i half_bytes = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  __m256 sums[kChains * Tokens];
  unrolled<kChains * Tokens>([&](auto i) { sums[i] = _mm256_setzero_ps(); });
  const uint16_t* windows_T = weight.windows_T;
  const uint8_t *all_places = weight.places, *all_values = weight.values;
  const auto step = [&](int64_t t, auto chain) __attribute__((always_inline)) {
    prefetch(all_values + (t + kPrefetchedSteps) * kValueBytes);
    int stored;
    __builtin_memcpy(&stored, all_places + t * kPlaceBytes, sizeof stored);
    const __m256i places = _mm256_srlv_epi32(_mm256_set1_epi32(stored), half_bytes);  // the lowest 3 bits count
    const __m256 value = _mm256_loadu_ps(reinterpret_cast<const float*>(all_values + t * kValueBytes));
    const uint8_t* window = x_MK + 4 * windows_T[t];
    unrolled<Tokens>([&](auto m) {
      const __m256 x = _mm256_loadu_ps(reinterpret_cast<const float*>(window + m * stride));
      constexpr int kSum = chain * Tokens + m;
      __m256 sum = _mm256_fmadd_ps(value, _mm256_permutevar8x32_ps(x, places), sums[kSum]);
      in_turn(sum);
      sums[kSum] = sum;
    });
  };
  int64_t t = weight.segments[s].first;
  const int64_t last = weight.segments[s].last;
  for (; t + kChains <= last; t += kChains) {
    unrolled<kChains>([&](auto chain) { step(t + chain, chain); });
  }
  for (; t < last; ++t) step(t, std::integral_constant<int, 0>{});
  unrolled<Tokens>([&](auto m) {
    unrolled<kChains - 1>([&](auto other) { sums[m] = _mm256_add_ps(sums[m], sums[(other + 1) * Tokens + m]); });
    totals_M[m] = _mm256_add_ps(totals_M[m], sums[m]);
  });
}

inline void finish_token(const NarrowPickView& weight, int64_t strip, __m256 total, int64_t token,
                         const StripFinish& finish) {
  const int64_t first = strip * kNarrowRows;
  const int64_t rows = weight.rows - first < kNarrowRows ? weight.rows - first : kNarrowRows;
  float* y_N = finish.y_MN + token * weight.rows;
  if (finish.token_scales_M != nullptr) total = _mm256_mul_ps(total, _mm256_set1_ps(finish.token_scales_M[token]));
  if (weight.order == nullptr && rows == kNarrowRows) {
    if (finish.bias_N != nullptr) total = _mm256_add_ps(total, _mm256_loadu_ps(finish.bias_N + first));
    return _mm256_storeu_ps(y_N + first, total);
  }
  float lanes[kNarrowRows];
  _mm256_storeu_ps(lanes, total);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t n = weight.order == nullptr ? first + r : weight.order[first + r];
    y_N[n] = finish.bias_N == nullptr ? lanes[r] : lanes[r] + finish.bias_N[n];
  }
}

template <ValueType kValues, bool kBroad, int Tokens>
void multiply_strip(const NarrowPickView& weight, int64_t strip, const uint8_t* x_MK, int64_t stride, int64_t token,
                    const StripFinish& finish) {
  __m256 totals_M[Tokens];
  unrolled<Tokens>([&](auto m) { totals_M[m] = _mm256_setzero_ps(); });
  for (int64_t s = weight.segment_offsets_S[strip]; s < weight.segment_offsets_S[strip + 1]; ++s) {
    if constexpr (kValues == ValueType::kBfloat16) {
      add_half_segment<kBroad, Tokens>(weight, s, x_MK + token * stride, stride, totals_M);
    } else if constexpr (kValues == ValueType::kFloat32) {
      add_float_segment<Tokens>(weight, s, x_MK + token * stride, stride, totals_M);
    } else {
      add_segment<kBroad, kValues == ValueType::kInt4, Tokens>(weight, s, x_MK + token * stride, stride, totals_M);
    }
  }
  unrolled<Tokens>([&](auto m) { finish_token(weight, strip, totals_M[m], token + m, finish); });
}

template <ValueType kValues, bool kBroad>
void multiply_tokens(const NarrowPickView& weight, int64_t strip, const uint8_t* x_MK, int64_t stride, int64_t token,
                     int64_t count, const StripFinish& finish) {
  for (int64_t taken = 1; count > 0; token += taken, count -= taken) {
    taken = count >= 8 ? 8 : count >= 4 ? 4 : count >= 2 ? 2 : 1;
    const auto multiply = taken == 8   ? multiply_strip<kValues, kBroad, 8>
                          : taken == 4 ? multiply_strip<kValues, kBroad, 4>
                          : taken == 2 ? multiply_strip<kValues, kBroad, 2>
                                       : multiply_strip<kValues, kBroad, 1>;
    multiply(weight, strip, x_MK, stride, token, finish);
  }
}

template <ValueType kValues>
void multiply_values(const NarrowPickView& weight, int64_t strip, const uint8_t* x_MK, int64_t stride, int64_t token,
                     int64_t count, const StripFinish& finish) {
  const auto multiply = weight.broad ? multiply_tokens<kValues, true> : multiply_tokens<kValues, false>;
  multiply(weight, strip, x_MK, stride, token, count, finish);
}

void strip(const NarrowPickView& weight, int64_t strip, const uint8_t* x_MK, int64_t stride, int64_t token,
           int64_t count, const StripFinish& finish) {
  switch (weight.value_type) {
    case ValueType::kFloat32:
      return multiply_tokens<ValueType::kFloat32, true>(weight, strip, x_MK, stride, token, count, finish);
    case ValueType::kBfloat16:
      return multiply_values<ValueType::kBfloat16>(weight, strip, x_MK, stride, token, count, finish);
    case ValueType::kInt8:
      return multiply_values<ValueType::kInt8>(weight, strip, x_MK, stride, token, count, finish);
    case ValueType::kInt4:
      return multiply_values<ValueType::kInt4>(weight, strip, x_MK, stride, token, count, finish);
  }
}

}  // namespace

const NarrowPickKernels kNarrowPickKernels{strip};

}  // namespace hebbline::avx2
