// What Python calls by name; see the headers. The instruction set is chosen once: it is that of the library.

#include <algorithm>

#include "sample/largest.h"
#include "sample/nucleus.h"

namespace {

const hebbline::SampleKernels& kernels() {
  static const hebbline::SampleKernels& chosen = hebbline::sample_kernels(hebbline::select_isa());
  return chosen;
}

}  // namespace

#define HEBBLINE_CALLED extern "C" __attribute__((visibility("default")))

HEBBLINE_CALLED void hebbline_weigh(const float* logits, int64_t count, double peak, double temperature,
                                    double* weights) {
  kernels().weigh(logits, count, peak, temperature, weights);
}

HEBBLINE_CALLED void hebbline_add_up(const float* logits, int64_t count, double peak, double temperature, float edge,
                                     double* sums, double* above) {
  kernels().add_up(logits, count, peak, temperature, edge, sums, above);
}

HEBBLINE_CALLED int64_t hebbline_find(const float* logits, int64_t count, float low, float high, int64_t capacity,
                                      int64_t* ids) {
  return kernels().find(logits, count, low, high, capacity, ids);
}

HEBBLINE_CALLED void hebbline_keep_largest(const double* weights, int64_t count, double before, double target,
                                           uint8_t* kept) {
  hebbline::keep_largest(weights, count, before, target, kept);
}

// The kind of the nucleus, and `found`: how many ids and weights were written, kMostNear at most.
HEBBLINE_CALLED int32_t hebbline_nucleus(const float* logits, int64_t count, double peak, double temperature,
                                         double top_p, int64_t* found, int64_t* ids, double* weights, float* above,
                                         double* sums) {
  const hebbline::Nucleus nucleus = hebbline::find_nucleus(kernels(), {logits, count, peak, temperature}, top_p);
  *found = static_cast<int64_t>(nucleus.ids_N.size());
  *above = nucleus.above;
  std::copy(nucleus.ids_N.begin(), nucleus.ids_N.end(), ids);
  std::copy(nucleus.weights_N.begin(), nucleus.weights_N.end(), weights);
  std::copy(nucleus.sums_B.begin(), nucleus.sums_B.end(), sums);
  return static_cast<int32_t>(nucleus.kind);
}
