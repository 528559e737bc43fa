#include <immintrin.h>

#include <utility>

#include "linear/sell.h"

namespace hebbline::avx512 {
#include "simd/unrolled.inc"

namespace {

constexpr int64_t kPrefetchedSteps = 24;
constexpr std::integral_constant<int, 0> kFirst;
constexpr std::integral_constant<int, 1> kSecond;

inline __m512 values_at(const float* values, int64_t step) { return _mm512_loadu_ps(values + step * kSliceRows); }

inline __m512 values_at(const uint16_t* values, int64_t step) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + step * kSliceRows));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

template <class Value, int Tokens>
void multiply(const SellView& weight, int64_t slice, const float* x_MK, float* sums) {
  const Value* values = static_cast<const Value*>(weight.values);
  __m512 partial[2][Tokens];
  unrolled<2 * Tokens>([&](auto i) { partial[i / Tokens][i % Tokens] = _mm512_setzero_ps(); });
  const auto step = [&](int64_t l, auto chain) __attribute__((always_inline)) {
    const __m512i places =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight.places + l * kSliceRows)));
    const __m512 value = values_at(values, l);
    unrolled<Tokens>([&](auto m) {
      const __m512 x = _mm512_i32gather_ps(places, x_MK + m * weight.columns, 4);
      partial[chain][m] = _mm512_fmadd_ps(value, x, partial[chain][m]);
    });
  };
  int64_t l = weight.slice_offsets_S[slice];
  const int64_t end = weight.slice_offsets_S[slice + 1];
  for (; l + 2 <= end; l += 2) {
    _mm_prefetch(reinterpret_cast<const char*>(values + (l + kPrefetchedSteps) * kSliceRows), _MM_HINT_T0);
    step(l, kFirst);
    step(l + 1, kSecond);
  }
  if (l < end) step(l, kFirst);
  unrolled<Tokens>(
      [&](auto m) { _mm512_storeu_ps(sums + m * kSliceRows, _mm512_add_ps(partial[0][m], partial[1][m])); });
}

template <class Value>
void multiply_tokens(const SellView& weight, int64_t slice, const float* x_MK, int64_t count, float* sums) {
  switch (count) {
    case 1:
      return multiply<Value, 1>(weight, slice, x_MK, sums);
    case 2:
      return multiply<Value, 2>(weight, slice, x_MK, sums);
    case 3:
      return multiply<Value, 3>(weight, slice, x_MK, sums);
    default:
      return multiply<Value, 4>(weight, slice, x_MK, sums);
  }
}

}  // namespace

void multiply_slice(const SellView& weight, int64_t slice, const float* x_MK, int64_t count, float* sums) {
  if (weight.bfloat16) return multiply_tokens<uint16_t>(weight, slice, x_MK, count, sums);
  return multiply_tokens<float>(weight, slice, x_MK, count, sums);
}

}  // namespace hebbline::avx512
