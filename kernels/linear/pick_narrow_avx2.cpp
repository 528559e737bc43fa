#include <immintrin.h>

#include <utility>

#include "linear/pick_narrow.h"

namespace hebbline::avx2 {
#include "linear/pick_narrow_kernels.inc"

namespace {

// Places of numbers of two bytes, of which the first is stored.
template <bool kBroad>
inline Places<kBroad> half_places(const uint8_t* stored) {
  const __m256i first = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(stored)));
  const __m256i both = _mm256_add_epi16(_mm256_mullo_epi16(first, _mm256_set1_epi16(0x101)), _mm256_set1_epi16(0x100));
  return Places<kBroad>(both);
}

inline __m256 even_halves(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline __m256 odd_halves(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
}

// As Integers has it, for bfloat16, of which a lane holds two.
template <bool kBroad>
struct Halves {
  template <int Tokens>
  static inline void add_segment(const NarrowPickView& weight, int64_t s, const uint8_t* x_MK, int64_t stride,
                                 __m256* totals_M) {
    constexpr int64_t kPlaceBytes = 16, kValueBytes = 32;
    constexpr int kChains = Tokens <= 4 ? 2 : 1;  // hide the latency of a product
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
};

// And for float32: one link of a row in a step, and a permutation across the whole vector.
struct Singles {
  template <int Tokens>
  static inline void add_segment(const NarrowPickView& weight, int64_t s, const uint8_t* x_MK, int64_t stride,
                                 __m256* totals_M) {
    constexpr int64_t kPlaceBytes = 4, kValueBytes = 32;
    constexpr int kChains = (3 + Tokens) / Tokens;  // hide the latency of a product
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
};

void strip(const NarrowPickView& weight, int64_t strip, const uint8_t* x_MK, int64_t stride, int64_t token,
           int64_t count, const StripFinish& finish) {
  const auto multiply = weight.value_type == ValueType::kFloat32 ? multiply_tokens<Singles>
                        : weight.value_type == ValueType::kInt8  ? multiply_integers<false>
                        : weight.value_type == ValueType::kInt4  ? multiply_integers<true>
                        : weight.broad                           ? multiply_tokens<Halves<true>>
                                                                 : multiply_tokens<Halves<false>>;
  multiply(weight, strip, x_MK, stride, token, count, finish);
}

}  // namespace

const NarrowPickKernels kNarrowPickKernels{Weights::kUnsignedX, strip};

}  // namespace hebbline::avx2
