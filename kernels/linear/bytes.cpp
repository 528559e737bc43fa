#include "linear/bytes.h"

#include <algorithm>

#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kTokensPerTask = 8;
constexpr int64_t kStep = 64;  // bytes; a row more than what is read, so that rows do not compete for cache lines

// Calls round(m) for every token.
template <class Round>
void for_each_token(int64_t tokens, const Parallel& parallel, const Round& round) {
  parallel(static_cast<size_t>((tokens + kTokensPerTask - 1) / kTokensPerTask), [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) * kTokensPerTask;
    for (int64_t m = first; m < std::min(tokens, first + kTokensPerTask); ++m) round(m);
  });
}

int64_t padded_columns(int64_t reach) { return (reach + kStep - 1) / kStep * kStep; }

}  // namespace

ByteActivations quantise_tokens(const ByteKernels& kernels, const Call& call, int64_t columns, int64_t reach,
                                bool is_unsigned, const Parallel& parallel) {
  const int64_t padded = padded_columns(reach), stride = padded + kStep, tokens = call.tokens;
  const int64_t bytes = (tokens + 1) * stride, scale_bytes = tokens * static_cast<int64_t>(sizeof(float));
  char* memory = scratch(Scratch::kActivations, static_cast<size_t>(bytes + scale_bytes));
  auto* x_MK = reinterpret_cast<int8_t*>(memory);
  auto* scales_M = reinterpret_cast<float*>(memory + bytes);
  const float fixed = call.activation_scale.value_or(0);
  for_each_token(tokens, parallel, [&](int64_t m) {
    scales_M[m] = kernels.quantise(call.x_MK + m * columns, columns, padded, fixed, is_unsigned, x_MK + m * stride);
  });
  std::fill_n(x_MK + tokens * stride, stride, int8_t{0});
  return {x_MK, stride, scales_M};
}

HalfActivations halve_tokens(const ByteKernels& kernels, const Call& call, int64_t columns, int64_t reach,
                             const Parallel& parallel) {
  const int64_t padded = padded_columns(reach), stride = padded + kStep;
  const auto bytes = static_cast<size_t>(call.tokens * stride) * sizeof(uint16_t);
  auto* x_MK = reinterpret_cast<uint16_t*>(scratch(Scratch::kActivations, bytes));
  for_each_token(call.tokens, parallel,
                 [&](int64_t m) { kernels.halve(call.x_MK + m * columns, columns, padded, x_MK + m * stride); });
  return {x_MK, stride};
}

}  // namespace hebbline
