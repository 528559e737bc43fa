#include "linear/cost.h"

#include <algorithm>
#include <cmath>

#include "linear/cost_narrow.h"

namespace hebbline {
namespace {

constexpr double kNanosecondsPerByte = 0.05;  // 20 GB/s
constexpr double kNanosecondsPerTransposed = 0.3, kNanosecondsPerRounded = 0.8;
constexpr double kVectorFixed = 0.7, kVectorPerToken = 0.29;
constexpr double kHalfByteFixed = 1.1;
constexpr double kNanosecondsPerStreamed = 0.035, kStepPerToken = 0.55, kNanosecondsPerPacked = 0.1;

double columns_per_unit(ValueType values) {
  return values == ValueType::kFloat32 ? 1 : values == ValueType::kBfloat16 ? 2 : 4;
}

double value_bytes(ValueType values) {
  return values == ValueType::kFloat32 ? 4 : values == ValueType::kBfloat16 ? 2 : values == ValueType::kInt8 ? 1 : 0.5;
}

// X in, Y out.
double transposing(const Workload& work, double tokens) {
  return tokens < 2 ? 0 : kNanosecondsPerTransposed * tokens * (work.rows + work.columns);
}

// X to whole numbers, as floats.
double rounding(const Workload& work, double tokens) {
  const bool integers = work.values == ValueType::kInt8 || work.values == ValueType::kInt4;
  return integers ? kNanosecondsPerRounded * tokens * work.columns : 0;
}

double tile(const Workload& work, Isa isa, double tokens) {
  const double vectors = work.rows / 16 * work.columns / columns_per_unit(work.values);
  const double bytes = work.rows * work.columns / 8 + work.links * value_bytes(work.values);
  const double fixed = work.values == ValueType::kInt4 ? kHalfByteFixed : kVectorFixed;
  if (isa == Isa::kAmx && work.values != ValueType::kFloat32 && tokens >= 4) {
    constexpr double kExpand = 1.5, kPerToken = 0.05;  // tiles take 16 tokens at a time
    return vectors * (kExpand + kPerToken * std::ceil(tokens / 16) * 16) + 0.3 * bytes * kNanosecondsPerByte;
  }
  return vectors * (fixed + kVectorPerToken * tokens) + 0.3 * bytes * kNanosecondsPerByte;
}

// Links by rows; from 17 tokens on, pairs of bfloat16 halve the work, and tiles of X^T are read from further away.
double links(const Workload& work, Isa isa, double tokens) {
  const bool halves =
      isa != Isa::kAvx2 && work.values != ValueType::kFloat32 && work.values != ValueType::kInt4 && tokens > 16;
  const double padded = tokens <= 1 ? 0 : std::max(8.0, tokens);
  const double per_token = halves ? 0.016 : padded <= 16 ? 0.019 : 0.025;
  return work.links * (0.33 + per_token * padded) + transposing(work, tokens) + rounding(work, tokens);
}

// Picked columns: by memory or by steps, whichever takes longer. What rows that wait for one another leave empty in
// their steps was counted on random masks of 1% to 50%: a share of all cells, whatever the density.
double pick(const Workload& work, double tokens) {
  const double width = columns_per_unit(work.values);
  const double empty = width < 2 ? 0.09 : width < 4 ? 0.063 : 0.046;
  const double steps = (work.links + empty * work.rows * work.columns) / (16 * width);
  const double bytes = steps * (66 + 16 * width);
  return std::max(bytes * kNanosecondsPerStreamed, steps * (0.3 + kStepPerToken * tokens)) +
         kNanosecondsPerPacked * tokens * work.columns;
}

// By memory for few tokens, by products for many.
double dense(const Workload& work, Isa isa, double tokens) {
  const double per_cell = isa == Isa::kScalar ? std::max(0.127, 0.05 + 0.051 * tokens)
                                              : std::max(0.125 + 0.004 * tokens, 0.07 + 0.0182 * tokens);
  return work.rows * work.columns * per_cell + rounding(work, tokens);
}

double sell(const Workload& work, Isa isa, double tokens) {
  const double gather = isa == Isa::kAmx ? 0.18 : 0.45;
  return work.links * gather * tokens;
}

}  // namespace

double cost_microseconds(Family family, const Workload& work, Isa isa, double tokens) {
  switch (family) {
    case Family::kTile:
      return tile(work, isa, tokens) / 1e3;
    case Family::kSell:
      return sell(work, isa, tokens) / 1e3;
    case Family::kDense:
      return dense(work, isa, tokens) / 1e3;
    case Family::kCsr:
      return links(work, isa, tokens) / 1e3;
    case Family::kPick:
      return (isa == Isa::kAvx2 ? narrow_pick_nanoseconds(work, tokens) : pick(work, tokens)) / 1e3;
    case Family::kQuad:
      return quad_nanoseconds(work, tokens) / 1e3;
    case Family::kPanel:
      break;
  }
  const double vector_bytes = 64;
  return work.vectors * (0.2 + kVectorPerToken * tokens + vector_bytes * kNanosecondsPerByte * 0.3) / 1e3;
}

}  // namespace hebbline
