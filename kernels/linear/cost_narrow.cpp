#include "linear/cost_narrow.h"

#include <algorithm>
#include <cmath>

namespace hebbline {
namespace {

constexpr double kNanosecondsPerStreamed = 0.031, kNanosecondsPerQuantised = 0.12;
constexpr double kBroadStep = 1.2;  // as in pick_narrow.cpp

double density(const Workload& work) { return work.links / std::max(work.rows * work.columns, 1.0); }

// One tile of up to 32 tokens.
double quad_tile(const Workload& work, double tokens) {
  const double width = tokens <= 8 ? 8 : tokens <= 16 ? 16 : 32;
  const double four = width == 8 ? 1.26 : width == 16 ? 1.42 : 2.35;
  const double grouped = work.groups > 1 ? 2.5 * work.rows * work.groups : 0;
  return work.links / 4 * four + grouped + 0.45 * width * (work.rows + work.columns);
}

}  // namespace

// Steps: what rows that wait for one another leave empty falls with density.
double narrow_pick_nanoseconds(const Workload& work, double tokens) {
  const double cells = work.rows * work.columns;
  const double narrow = work.links / 32 + 0.006 * cells * std::exp(-density(work) / 0.4);
  const double broad = work.links / 32 + 0.0026 * cells * std::exp(-density(work) / 0.35);
  const bool is_broad = kBroadStep * broad < narrow;
  const double value_bytes = work.values == ValueType::kInt4 ? 16 : 32, place_bytes = is_broad ? 32 : 16;
  const double passes = std::ceil(tokens / 8);
  const double per_step = is_broad ? 0.75 * passes + 0.71 * tokens : 0.9 * passes + 0.47 * tokens;
  const double streamed = (2 + value_bytes + place_bytes) * kNanosecondsPerStreamed;
  const double grouped = work.groups > 1 ? work.rows / 8 * work.groups * (2.5 + 0.65 * tokens) : 0;
  return (is_broad ? broad : narrow) * std::max(streamed, per_step) + grouped +
         kNanosecondsPerQuantised * tokens * work.columns;
}

double quad_nanoseconds(const Workload& work, double tokens) {
  const double whole = std::floor(tokens / 32), left = tokens - 32 * whole;
  return whole * quad_tile(work, 32) + (left > 0 ? quad_tile(work, left) : 0);
}

}  // namespace hebbline
