// The head of a language model: exact, or in two passes: all logits from int8 weights and activations, then those of a
// shortlist from the float32 weights.
//
// The int8 pass reads a quarter of the bytes, which is what a head costs at few tokens. It misjudges a logit by less
// than a hundredth of the row's largest on average, and by a tenth at worst (SmolLM2-135M); what decides between
// tokens, the highest logits, is computed again.
//
// Legend: R rows (tokens whose logits are wanted), V vocabulary, E hidden size, G groups of 64 logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "platform/parallel.h"
#include "platform/variants.h"

namespace hebbline {

inline constexpr int kInt8Tokens = 4;   // most tokens of a call of HeadKernels::multiply_int8
inline constexpr int kFloatTokens = 6;  // and of multiply_floats

// The weights. weight[v][e] is about int8_VE[v][e] * scales_V[v].
struct HeadWeights {
  int64_t vocabulary, hidden;
  const int8_t* int8_VE;
  const float* scales_V;
  const float* float_VE;
};

// One instruction set's kernels.
struct HeadKernels {
  // sums[t][v - first] for `tokens` tokens, at most kInt8Tokens, and v in [first, last): products of whole numbers,
  // exact. `stride` is from one token's sums to the next.
  void (*multiply_int8)(const HeadWeights& weights, const int32_t* row_sums_V, int64_t first, int64_t last,
                        const int8_t* tokens_TE, int64_t tokens, int32_t* sums, int64_t stride);
  // The same for float32 weights and at most kFloatTokens tokens. What a token gets does not depend on the others. The
  // weights `ahead` floats on are fetched meanwhile.
  void (*multiply_floats)(const float* weight_VE, int64_t hidden, int64_t first, int64_t last, const float* tokens_TE,
                          int64_t tokens, int64_t ahead, float* logits, int64_t stride);
};

// Those of the instruction set that platform/cpu.h selects.
const HeadKernels& head_kernels();

// logits_RV = hidden_RE times weight_VE, in float32. The weight is read as it lies: no copy of it is made.
void multiply_head(const HeadKernels& kernels, const float* weight_VE, int64_t vocabulary, int64_t hidden,
                   const float* hidden_RE, int64_t rows, float* logits_RV, const Parallel& parallel);

// A head in two passes, made once for a node.
class ShortlistHead {
 public:
  // `shortlist`: the logits of a token that are exact, at least 1.
  ShortlistHead(const HeadWeights& weights, int64_t shortlist);

  // logits_RV = hidden_RE times the weights. Of each row the `shortlist` highest of the int8 pass are replaced by exact
  // ones, and then whatever is still above the highest exact one, until none is: a row's largest logit is exact.
  void compute(const float* hidden_RE, int64_t rows, float* logits_RV, const Parallel& parallel) const;

 private:
  void estimate(const int8_t* tokens_RE, const float* token_scales_R, int64_t rows, int64_t first, int64_t last,
                float* logits_RV, float* largest_RG) const;
  void refine(const float* hidden_E, std::span<const float> largest_G, float* logits_V) const;
  std::vector<int32_t> candidates(std::span<const float> largest_G, const float* logits_V) const;
  float rescore(const float* hidden_E, const std::vector<int32_t>& tokens, float* logits_V) const;

  HeadWeights weights_;
  int64_t shortlist_;
  std::vector<int32_t> row_sums_V_;
  const HeadKernels& kernels_ = head_kernels();
};

HEBBLINE_DECLARE(HeadKernels, kHeadKernels)
#if defined(__x86_64__)
HEBBLINE_DECLARE_IN(avx2vnni, HeadKernels, kHeadKernels)
#elif defined(__aarch64__)
HEBBLINE_DECLARE_IN(neondot, HeadKernels, kHeadKernels)
HEBBLINE_DECLARE_IN(neoni8mm, HeadKernels, kHeadKernels)
#endif

}  // namespace hebbline
