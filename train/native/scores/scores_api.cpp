// What Python calls by name.

#include <exception>

#include "scores/scores.h"

// Scores of a mask, see `link_scores`; `way` is a `hebbline::Way`. Returns 1; 0 where this processor lacks the way, and
// -1 where memory or threads ran out
// or HEBBLINE_ISA names what is not there.
extern "C" __attribute__((visibility("default"))) int hebbline_link_scores(const uint8_t* mask_NK, int64_t outputs,
                                                                           int64_t inputs, int ch3, int way,
                                                                           int threads, float* scores_NK) {
  try {
    const auto kind = ch3 != 0 ? hebbline::LinkScore::kCh3 : hebbline::LinkScore::kCh2;
    const auto chosen = static_cast<hebbline::Way>(way);
    return hebbline::link_scores(mask_NK, outputs, inputs, kind, chosen, threads, scores_NK) ? 1 : 0;
  } catch (const std::exception&) {
    return -1;
  }
}
