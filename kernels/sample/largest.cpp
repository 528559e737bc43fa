#include "sample/largest.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace hebbline {

namespace {

double middle(double a, double b, double c) { return std::max(std::min(a, b), std::min(std::max(a, b), c)); }

// The least weight that is kept, and how many of those that have it are.
struct Edge {
  double weight = -1;
  double equal = 0;
};

Edge find_edge(const double* weights_N, size_t count, double before, double target) {
  std::vector<double> rest(weights_N, weights_N + count), larger(count), smaller(count);
  Edge edge;
  for (size_t n = count; n > 0;) {
    const double pivot = middle(rest[n / 4], rest[n / 2], rest[n - 1 - n / 4]);
    size_t above = 0, below = 0;
    for (size_t i = 0; i < n; ++i) {  // both are written, and one is kept: a choice would be half wrong
      larger[above] = smaller[below] = rest[i];
      above += rest[i] > pivot ? 1 : 0;
      below += rest[i] < pivot ? 1 : 0;
    }
    const double with_larger = before + sum_of(larger.data(), above);
    if (with_larger >= target) {
      std::swap(rest, larger);
      n = above;
      continue;
    }
    edge.weight = pivot;
    edge.equal = static_cast<double>(n - above - below);
    before = with_larger + edge.equal * pivot;
    if (before >= target) {
      edge.equal = std::min(edge.equal, std::ceil((target - with_larger) / pivot));
      break;
    }
    std::swap(rest, smaller);
    n = below;
  }
  return edge;
}

}  // namespace

// Four sums side by side: an addition takes as long as four of them.
double sum_of(const double* weights_N, size_t count) {
  double sums[4] = {0, 0, 0, 0};
  size_t n = 0;
  for (; n + 4 <= count; n += 4) {
    for (size_t i = 0; i < 4; ++i) sums[i] += weights_N[n + i];
  }
  for (; n < count; ++n) sums[0] += weights_N[n];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

void keep_largest(const double* weights_N, int64_t count, double before, double target, uint8_t* kept_N) {
  Edge edge = find_edge(weights_N, static_cast<size_t>(count), before, target);
  for (int64_t n = 0; n < count; ++n) {
    const bool is_equal = weights_N[n] == edge.weight;
    kept_N[n] = weights_N[n] > edge.weight || (is_equal && edge.equal > 0) ? 1 : 0;
    edge.equal -= is_equal ? 1 : 0;
  }
}

}  // namespace hebbline
