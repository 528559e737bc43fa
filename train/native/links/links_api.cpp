// What Python calls by name. Each returns 0, or -1 where memory or threads ran out or HEBBLINE_ISA names what is not
// there.

#include <exception>

#include "links/links.h"

#define HEBBLINE_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using hebbline::Activations;
using hebbline::LinkGraph;

// Features of all tokens after each other, or tokens of all features.
Activations activations(float* data, int64_t tokens, int64_t features, bool features_first) {
  if (features_first) return {data, 1, tokens};
  return {data, features, 1};
}

template <class Work>
int guarded(const Work& work) {
  try {
    work();
    return 0;
  } catch (const std::exception&) {
    return -1;
  }
}

}  // namespace

// See `hebbline::links_forward`; x is [K, T] where x_first is 1, [T, K] otherwise, and y [N, T] or [T, N].
HEBBLINE_EXPORT int hebbline_links_forward(int64_t rows, int64_t columns, const int32_t* starts_R,
                                           const int32_t* columns_Z, const float* values_Z, const float* bias_N,
                                           float* x, int x_first, int64_t tokens, float* y, int y_first, int threads) {
  return guarded([&] {
    const LinkGraph graph{rows, columns, starts_R, columns_Z};
    hebbline::links_forward(graph, values_Z, bias_N, activations(x, tokens, columns, x_first != 0), tokens,
                            activations(y, tokens, rows, y_first != 0), hebbline::select_isa(), threads);
  });
}

// See `hebbline::links_backward`; gradients that are null are not formed, and that of x lies as x does.
HEBBLINE_EXPORT int hebbline_links_backward(int64_t rows, int64_t columns, const int32_t* starts_R,
                                            const int32_t* columns_Z, const int32_t* column_starts_R,
                                            const int32_t* rows_Z, const int32_t* places_Z, const float* values_Z,
                                            float* x, int x_first, float* y_gradient, int y_first, int64_t tokens,
                                            float* x_gradient, float* values_gradient_Z, float* bias_gradient_N,
                                            int threads) {
  return guarded([&] {
    const LinkGraph graph{rows, columns, starts_R, columns_Z}, by_column{columns, rows, column_starts_R, rows_Z};
    const hebbline::LinkGradients found{activations(x_gradient, tokens, columns, x_first != 0), values_gradient_Z,
                                        bias_gradient_N};
    hebbline::links_backward(graph, by_column, places_Z, values_Z, activations(x, tokens, columns, x_first != 0),
                             activations(y_gradient, tokens, rows, y_first != 0), tokens, found, hebbline::select_isa(),
                             threads);
  });
}

// See `hebbline::adam_step`.
HEBBLINE_EXPORT int hebbline_adam_step(float* weights, const float* gradients, float* first, float* second,
                                       int32_t* ages, int64_t count, float rate, float decay, float beta1, float beta2,
                                       float epsilon, int32_t oldest, const float* step_sizes, const float* corrections,
                                       int threads) {
  return guarded([&] {
    const hebbline::AdamStep step{rate, decay, beta1, beta2, epsilon, oldest, step_sizes, corrections};
    hebbline::adam_step(weights, gradients, first, second, ages, count, step, hebbline::select_isa(), threads);
  });
}
