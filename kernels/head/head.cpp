#include "head/head.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "linear/activations.h"
#include "platform/cpu.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kRowsPerTask = 512;  // of the weight
constexpr int64_t kGroup = 64;         // logits of which the largest stands for all when a threshold is sought
constexpr float kLargestQuant = 127;

void quantise(const float* hidden_E, int64_t hidden, float inverse, int8_t* token_E) {
  for (int64_t e = 0; e < hidden; ++e) {
    float quant = std::nearbyint(hidden_E[e] * inverse);
    quant = quant > -kLargestQuant ? quant : -kLargestQuant;  // and where it is NaN
    token_E[e] = static_cast<int8_t>(quant < kLargestQuant ? quant : kLargestQuant);
  }
}

// Rows as int8, and their scales.
struct Tokens {
  const int8_t* int8_RE;
  const float* scales_R;
};

// The result lives in memory of the calling thread until its next call.
Tokens quantise_rows(const float* hidden_RE, int64_t rows, int64_t hidden) {
  thread_local Buffer buffer;
  const size_t bytes = static_cast<size_t>(rows) * (sizeof(float) + static_cast<size_t>(hidden));
  if (buffer.bytes() < bytes) buffer = Buffer(bytes);
  auto* scales_R = buffer.as<float>();
  auto* int8_RE = reinterpret_cast<int8_t*>(scales_R + rows);
  for (int64_t r = 0; r < rows; ++r) {
    const float* hidden_E = hidden_RE + r * hidden;
    const TokenScale scale = token_scale(hidden_E, hidden, std::nullopt);
    scales_R[r] = scale.scale;
    quantise(hidden_E, hidden, scale.inverse, int8_RE + r * hidden);
  }
  return {int8_RE, scales_R};
}

// A value that at least `count` logits reach: the count-th largest of the groups' largest. (NaN is never the largest.)
float threshold(const float* logits_V, int64_t vocabulary, int64_t count) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  std::vector<float> largest;
  for (int64_t first = 0; first < vocabulary; first += kGroup) {
    float most = kNone;
    for (int64_t v = first; v < std::min(vocabulary, first + kGroup); ++v) most = std::max(most, logits_V[v]);
    largest.push_back(most);
  }
  if (count > static_cast<int64_t>(largest.size())) return kNone;
  std::nth_element(largest.begin(), largest.begin() + (count - 1), largest.end(), std::greater<>());
  return largest[static_cast<size_t>(count - 1)];
}

}  // namespace

const HeadKernels& head_kernels() {
#if defined(__x86_64__)
  switch (select_isa()) {
    case Isa::kAmx:
    case Isa::kAvx512:
      return avx512::kHeadKernels;
    case Isa::kAvx2:
      return avx2::kHeadKernels;
    case Isa::kScalar:
    case Isa::kAmxEmulated:
      break;
  }
#endif
  return scalar::kHeadKernels;
}

ShortlistHead::ShortlistHead(const HeadWeights& weights, int64_t shortlist)
    : weights_(weights), shortlist_(shortlist), row_sums_V_(static_cast<size_t>(weights.vocabulary)) {
  for (int64_t v = 0; v < weights.vocabulary; ++v) {
    const int8_t* row_E = weights.int8_VE + v * weights.hidden;
    int32_t sum = 0;
    for (int64_t e = 0; e < weights.hidden; ++e) sum += row_E[e];
    row_sums_V_[static_cast<size_t>(v)] = sum;
  }
}

void ShortlistHead::compute(const float* hidden_RE, int64_t rows, float* logits_RV, const Parallel& parallel) const {
  const Tokens tokens = quantise_rows(hidden_RE, rows, weights_.hidden);
  parallel(static_cast<size_t>((weights_.vocabulary + kRowsPerTask - 1) / kRowsPerTask), [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) * kRowsPerTask;
    const int64_t last = std::min(weights_.vocabulary, first + kRowsPerTask);
    estimate(tokens.int8_RE, tokens.scales_R, rows, first, last, logits_RV);
  });
  parallel(static_cast<size_t>(rows), [&](size_t row) {
    const auto r = static_cast<int64_t>(row);
    refine(hidden_RE + r * weights_.hidden, logits_RV + r * weights_.vocabulary);
  });
}

void ShortlistHead::estimate(const int8_t* tokens_RE, const float* token_scales_R, int64_t rows, int64_t first,
                             int64_t last, float* logits_RV) const {
  int32_t sums[kHeadTokens * kRowsPerTask];
  for (int64_t r = 0; r < rows; r += kHeadTokens) {
    const int64_t count = std::min<int64_t>(kHeadTokens, rows - r);
    kernels_.multiply(weights_, row_sums_V_.data(), first, last, tokens_RE + r * weights_.hidden, count, sums,
                      kRowsPerTask);
    for (int64_t t = 0; t < count; ++t) {
      float* logits_V = logits_RV + (r + t) * weights_.vocabulary;
      const int32_t* sums_V = sums + t * kRowsPerTask - first;
      for (int64_t v = first; v < last; ++v) {
        logits_V[v] = static_cast<float>(sums_V[v]) * weights_.scales_V[v] * token_scales_R[r + t];
      }
    }
  }
}

std::vector<int32_t> ShortlistHead::candidates(const float* logits_V) const {
  const float least = threshold(logits_V, weights_.vocabulary, shortlist_);
  std::vector<int32_t> found;
  for (int64_t v = 0; v < weights_.vocabulary; ++v) {
    if (logits_V[v] >= least) found.push_back(static_cast<int32_t>(v));
  }
  if (static_cast<int64_t>(found.size()) <= shortlist_) return found;
  const auto higher = [logits_V](int32_t a, int32_t b) {
    return logits_V[a] > logits_V[b] || (logits_V[a] == logits_V[b] && a < b);
  };
  std::nth_element(found.begin(), found.begin() + shortlist_, found.end(), higher);
  found.resize(static_cast<size_t>(shortlist_));
  return found;
}

float ShortlistHead::rescore(const float* hidden_E, const std::vector<int32_t>& tokens, float* logits_V) const {
  float most = -std::numeric_limits<float>::infinity();
  for (const int32_t v : tokens) {
    logits_V[v] = kernels_.dot(hidden_E, weights_.float_VE + v * weights_.hidden, weights_.hidden);
    most = std::max(most, logits_V[v]);
  }
  return most;
}

void ShortlistHead::refine(const float* hidden_E, float* logits_V) const {
  std::vector<int32_t> tokens = candidates(logits_V);
  float most = rescore(hidden_E, tokens, logits_V);
  while (!tokens.empty()) {
    tokens.clear();
    for (int64_t v = 0; v < weights_.vocabulary; ++v) {  // an exact one is never above the highest exact one
      if (logits_V[v] > most) tokens.push_back(static_cast<int32_t>(v));
    }
    most = std::max(most, rescore(hidden_E, tokens, logits_V));
  }
}

}  // namespace hebbline
