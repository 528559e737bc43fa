// Top-p of a whole vocabulary without sorting it: the nucleus, the fewest of the likeliest tokens that have a share p.
//
// Sums decide, and they are in float64. A sample of the tokens only says where to look.
//
// Legend: V vocabulary, B blocks of kSumBlock of it, N tokens near the edge of the nucleus.
#pragma once

#include <cstdint>
#include <vector>

#include "sample/sample.h"

namespace hebbline {

// In a vocabulary of no more tokens, all are best looked at one by one.
constexpr int64_t kSmallVocabulary = 4096;

// With more tokens near the edge than this, another way is taken.
constexpr int64_t kMostNear = 1 << 14;

// A row of logits, of which none is above `peak`, and at what temperature their weights are.
struct Logits {
  const float* logits_V;
  int64_t count;
  double peak, temperature;
};

struct Nucleus {
  enum class Kind : int32_t { kNone, kFew, kMany };

  Kind kind = Kind::kNone;        // none: this way does not find it
  std::vector<int64_t> ids_N;     // few: all of its tokens, in order; many: those of them that are not above `above`
  std::vector<double> weights_N;  // of these
  float above = 0;                // many: all whose logits are larger are of it
  std::vector<double> sums_B;     // many: by blocks, the sums of its weights, but for rounding
};

// Equal logits at the edge of the nucleus are kept by the lowest token id. None is found of kSmallVocabulary or fewer.
Nucleus find_nucleus(const SampleKernels& kernels, const Logits& row, double top_p);

}  // namespace hebbline
