#include "linear/cost_narrow.h"

#include <algorithm>
#include <cmath>

namespace hebbline {
namespace {

constexpr double kNanosecondsPerStreamed = 0.031, kNanosecondsPerQuantised = 0.12;
constexpr double kBroadStep = 1.2;  // as in pick_narrow.cpp

// One tile of up to 32 tokens.
double quad_tile(const Workload& work, double tokens) {
  const double width = tokens <= 8 ? 8 : tokens <= 16 ? 16 : 32;
  const double four = width == 8 ? 1.26 : width == 16 ? 1.42 : 2.35;
  const double grouped = work.groups > 1 ? 2.5 * work.rows * work.groups : 0;
  return work.links / 4 * four + grouped + 0.45 * width * (work.rows + work.columns);
}

}  // namespace

namespace {

// A window of picked columns. Steps that rows leave empty while they wait for one another: `empty` of all cells, which
// falls with density. Nanoseconds of a step: `pass` for every 8 tokens, and `token` for each.
struct Window {
  double links, empty, falls, place_bytes, pass, token;
};

constexpr Window kNarrowInt{32, 0.006, 0.4, 16, 0.9, 0.47}, kBroadInt{32, 0.0026, 0.35, 32, 0.75, 0.71};
constexpr Window kNarrowHalf{16, 0.0114, 0.8, 16, 1.3, 0.42}, kBroadHalf{16, 0.0055, 0.85, 16, 1.0, 0.74};
constexpr Window kFloat{8, 0.0125, 10, 4, 1.2, 0.28};

double count_steps(const Workload& work, const Window& window) {
  const double density = work.links / std::max(work.rows * work.columns, 1.0);
  return work.links / window.links + window.empty * work.rows * work.columns * std::exp(-density / window.falls);
}

Window choose_window(const Workload& work) {
  if (work.values == ValueType::kFloat32) return kFloat;
  const bool half = work.values == ValueType::kBfloat16;
  const Window &narrow = half ? kNarrowHalf : kNarrowInt, &broad = half ? kBroadHalf : kBroadInt;
  return kBroadStep * count_steps(work, broad) < count_steps(work, narrow) ? broad : narrow;
}

}  // namespace

double narrow_pick_nanoseconds(const Workload& work, double tokens) {
  const Window window = choose_window(work);
  const double value_bytes = work.values == ValueType::kInt4 ? 16 : 32;
  const double streamed = (2 + value_bytes + window.place_bytes) * kNanosecondsPerStreamed;
  const double computed = window.pass * std::ceil(tokens / 8) + window.token * tokens;
  const double grouped = work.groups > 1 ? work.rows / 8 * work.groups * (2.5 + 0.65 * tokens) : 0;
  return count_steps(work, window) * std::max(streamed, computed) + grouped +
         kNanosecondsPerQuantised * tokens * work.columns;
}

double quad_nanoseconds(const Workload& work, double tokens) {
  const double whole = std::floor(tokens / 32), left = tokens - 32 * whole;
  return whole * quad_tile(work, 32) + (left > 0 ? quad_tile(work, left) : 0);
}

}  // namespace hebbline
