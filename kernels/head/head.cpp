#include "head/head.h"

#include <algorithm>
#include <limits>

#include "linear/activations.h"
#include "platform/arithmetic.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kRowsPerTask = 512;  // of the weight
constexpr int64_t kFloatRowsPerTask = 128;
constexpr int64_t kGroup = 64;  // logits whose largest is kept, to find the high ones; divides the above

// Rows as int8, and their scales.
struct Tokens {
  const int8_t* int8_RE;
  const float* scales_R;
};

// The result lives in memory of the calling thread until its next call.
Tokens quantise_rows(const float* hidden_RE, int64_t rows, int64_t hidden) {
  const size_t bytes = static_cast<size_t>(rows) * (sizeof(float) + static_cast<size_t>(hidden));
  auto* scales_R = reinterpret_cast<float*>(scratch(Scratch::kToken, bytes));
  auto* int8_RE = reinterpret_cast<int8_t*>(scales_R + rows);
  for (int64_t r = 0; r < rows; ++r) {
    const float* hidden_E = hidden_RE + r * hidden;
    const Int8Scale scale = token_scale(hidden_E, hidden, std::nullopt);
    scales_R[r] = scale.scale;
    int8_t* token_E = int8_RE + r * hidden;
    for (int64_t e = 0; e < hidden; ++e) token_E[e] = static_cast<int8_t>(round_to_int8(hidden_E[e] * scale.inverse));
  }
  return {int8_RE, scales_R};
}

constexpr float kNone = -std::numeric_limits<float>::infinity();

// The largest of a group's logits; NaN is never it. In lanes, so that it is a few vectors.
float largest_of(const float* logits, int64_t count) {
  constexpr int kLanes = 16;
  float lanes[kLanes];
  for (float& lane : lanes) lane = kNone;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane)
      lanes[lane] = logits[i + lane] > lanes[lane] ? logits[i + lane] : lanes[lane];
  }
  float most = kNone;
  for (; i < count; ++i) most = logits[i] > most ? logits[i] : most;
  for (const float lane : lanes) most = lane > most ? lane : most;
  return most;
}

// A value that at least `count` logits reach: the count-th largest of the groups' largest.
float threshold(std::vector<float> largest_G, int64_t count) {
  if (count > static_cast<int64_t>(largest_G.size())) return kNone;
  std::nth_element(largest_G.begin(), largest_G.begin() + (count - 1), largest_G.end(), std::greater<>());
  return largest_G[static_cast<size_t>(count - 1)];
}

int64_t groups(int64_t vocabulary) { return ceil_div(vocabulary, kGroup); }

// Calls found(v) for every logit that is above `least`, or that is `least` where `equal`.
template <class Found>
void each_above(const float* logits_V, int64_t vocabulary, std::span<const float> largest_G, float least, bool equal,
                const Found& found) {
  const auto is_above = [least, equal](float x) { return x > least || (equal && x == least); };
  for (size_t g = 0; g < largest_G.size(); ++g) {
    if (!is_above(largest_G[g])) continue;
    const int64_t first = static_cast<int64_t>(g) * kGroup;
    for (int64_t v = first; v < std::min(vocabulary, first + kGroup); ++v) {
      if (is_above(logits_V[v])) found(static_cast<int32_t>(v));
    }
  }
}

}  // namespace

const HeadKernels& head_kernels() {
  const Isa isa = select_isa();
#if defined(__x86_64__)
  if (isa == Isa::kAvx2Vnni) return avx2vnni::kHeadKernels;
#elif defined(__aarch64__)
  if (isa == Isa::kNeonI8mm) return neoni8mm::kHeadKernels;
  if (isa == Isa::kNeonDot) return neondot::kHeadKernels;
#endif
  return HEBBLINE_CHOOSE(isa, kHeadKernels);
}

void multiply_head(const HeadKernels& kernels, const float* weight_VE, int64_t vocabulary, int64_t hidden,
                   const float* hidden_RE, int64_t rows, float* logits_RV, const Parallel& parallel) {
  const int64_t steps = std::max<int64_t>(1, ceil_div(rows, kFloatTokens));
  const int64_t step = std::max<int64_t>(1, ceil_div(rows, steps));  // of about the same number of tokens
  parallel(static_cast<size_t>(ceil_div(vocabulary, kFloatRowsPerTask)), [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) * kFloatRowsPerTask;
    const int64_t last = std::min(vocabulary, first + kFloatRowsPerTask);
    for (int64_t r = 0; r < rows; r += step) {
      // The first tokens wait for the weights to come from memory; the next fetch those of the following task.
      const int64_t ahead = r == step ? kFloatRowsPerTask * hidden : 0;
      kernels.multiply_floats(weight_VE, hidden, first, last, hidden_RE + r * hidden, std::min(step, rows - r), ahead,
                              logits_RV + r * vocabulary + first, vocabulary);
    }
  });
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
  const int64_t per_row = groups(weights_.vocabulary);
  std::vector<float> largest_RG(static_cast<size_t>(rows * per_row));
  parallel(static_cast<size_t>(ceil_div(weights_.vocabulary, kRowsPerTask)), [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) * kRowsPerTask;
    const int64_t last = std::min(weights_.vocabulary, first + kRowsPerTask);
    estimate(tokens.int8_RE, tokens.scales_R, rows, first, last, logits_RV, largest_RG.data());
  });
  parallel(static_cast<size_t>(rows), [&](size_t row) {
    const auto r = static_cast<int64_t>(row);
    const std::span<const float> largest_G(largest_RG.data() + r * per_row, static_cast<size_t>(per_row));
    refine(hidden_RE + r * weights_.hidden, largest_G, logits_RV + r * weights_.vocabulary);
  });
}

void ShortlistHead::estimate(const int8_t* tokens_RE, const float* token_scales_R, int64_t rows, int64_t first,
                             int64_t last, float* logits_RV, float* largest_RG) const {
  int32_t sums[kInt8Tokens * kRowsPerTask];
  for (int64_t r = 0; r < rows; r += kInt8Tokens) {
    const int64_t count = std::min<int64_t>(kInt8Tokens, rows - r);
    kernels_.multiply_int8(weights_, row_sums_V_.data(), first, last, tokens_RE + r * weights_.hidden, count, sums,
                           kRowsPerTask);
    for (int64_t t = 0; t < count; ++t) {
      float* logits_V = logits_RV + (r + t) * weights_.vocabulary;
      const int32_t* sums_V = sums + t * kRowsPerTask - first;
      for (int64_t v = first; v < last; ++v) {
        logits_V[v] = static_cast<float>(sums_V[v]) * weights_.scales_V[v] * token_scales_R[r + t];
      }
      float* largest_G = largest_RG + (r + t) * groups(weights_.vocabulary);
      for (int64_t v = first; v < last; v += kGroup) {
        largest_G[v / kGroup] = largest_of(logits_V + v, std::min(kGroup, last - v));
      }
    }
  }
}

std::vector<int32_t> ShortlistHead::candidates(std::span<const float> largest_G, const float* logits_V) const {
  const float least = threshold({largest_G.begin(), largest_G.end()}, shortlist_);
  std::vector<int32_t> found;
  each_above(logits_V, weights_.vocabulary, largest_G, least, true, [&found](int32_t v) { found.push_back(v); });
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
    kernels_.multiply_floats(weights_.float_VE, weights_.hidden, v, v + 1, hidden_E, 1, 0, logits_V + v, 0);
    most = std::max(most, logits_V[v]);
  }
  return most;
}

void ShortlistHead::refine(const float* hidden_E, std::span<const float> largest_G, float* logits_V) const {
  std::vector<int32_t> tokens = candidates(largest_G, logits_V);
  float most = rescore(hidden_E, tokens, logits_V);
  while (!tokens.empty()) {
    tokens.clear();  // none of the next is exact yet: no exact one is above the highest of them
    each_above(logits_V, weights_.vocabulary, largest_G, most, false, [&tokens](int32_t v) { tokens.push_back(v); });
    most = std::max(most, rescore(hidden_E, tokens, logits_V));
  }
}

}  // namespace hebbline
