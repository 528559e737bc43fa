// What Python calls by name; see SampleKernels. The instruction set is chosen once: it is that of the library.

#include "sample/sample.h"

namespace {

const hebbline::SampleKernels& kernels() {
  static const hebbline::SampleKernels& chosen = hebbline::sample_kernels(hebbline::select_isa());
  return chosen;
}

}  // namespace

#define HEBBLINE_CALLED extern "C" __attribute__((visibility("default")))

HEBBLINE_CALLED double hebbline_weigh(const float* logits, int64_t count, float peak, float inverse, float* weights) {
  return kernels().weigh(logits, count, peak, inverse, weights);
}

HEBBLINE_CALLED void hebbline_weigh_exactly(const float* logits, int64_t count, double peak, double temperature,
                                            double* weights) {
  kernels().weigh_exactly(logits, count, peak, temperature, weights);
}

HEBBLINE_CALLED int64_t hebbline_select(const float* logits, const float* weights, int64_t count, float edge,
                                        int64_t capacity, int64_t* ids, double* rest) {
  return kernels().select(logits, weights, count, edge, capacity, ids, rest);
}

HEBBLINE_CALLED void hebbline_add_up(const double* weights, int64_t count, double least, double* sums) {
  kernels().add_up(weights, count, least, sums);
}

HEBBLINE_CALLED int64_t hebbline_split(const double* weights, int64_t count, double low, double high, int64_t capacity,
                                       uint8_t* kept, double* sums, int64_t* ids) {
  return kernels().split(weights, count, low, high, capacity, kept, sums, ids);
}
