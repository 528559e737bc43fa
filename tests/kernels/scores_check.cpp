// Scores of links in both ways against their definition in double, on masks of many shapes. Exits with 1 where they
// differ; meant to run under the sanitizers.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "scores/scores.h"

namespace {

using hebbline::LinkScore;
using hebbline::Way;

struct Mask {
  int64_t outputs, inputs;
  std::vector<uint8_t> links_NK;

  double at(int64_t n, int64_t k) const { return links_NK[static_cast<size_t>(n * inputs + k)]; }
};

Mask random_mask(int64_t outputs, int64_t inputs, double density) {
  std::mt19937 random(static_cast<unsigned>(outputs * 1000 + inputs));
  std::bernoulli_distribution draw(density);
  Mask mask{outputs, inputs, std::vector<uint8_t>(static_cast<size_t>(outputs * inputs))};
  for (auto& link : mask.links_NK) link = draw(random) ? 1 : 0;
  return mask;
}

// Adds S(A) A, with A read by `at(row, column)`, to `add(row, column, value)`.
template <typename At, typename Add>
void add_side(int64_t rows, int64_t columns, LinkScore kind, const At& at, const Add& add) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < rows; ++j) {
      double common = 0, degree = 0;
      for (int64_t c = 0; c < columns; ++c) {
        common += at(i, c) * at(j, c);
        degree += at(j, c);
      }
      if (common == 0) continue;
      const double weight = (kind == LinkScore::kCh2 ? common + 1 : 1) / std::max(degree - common, 1.0);
      for (int64_t c = 0; c < columns; ++c) add(i, c, weight * at(j, c));
    }
  }
}

std::vector<double> definition(const Mask& mask, LinkScore kind) {
  std::vector<double> scores_NK(mask.links_NK.size());
  const auto place = [&](int64_t n, int64_t k) { return static_cast<size_t>(n * mask.inputs + k); };
  add_side(
      mask.outputs, mask.inputs, kind, [&](int64_t n, int64_t k) { return mask.at(n, k); },
      [&](int64_t n, int64_t k, double value) { scores_NK[place(n, k)] += value; });
  add_side(
      mask.inputs, mask.outputs, kind, [&](int64_t k, int64_t n) { return mask.at(n, k); },
      [&](int64_t k, int64_t n, double value) { scores_NK[place(n, k)] += value; });
  return scores_NK;
}

bool agrees(const Mask& mask, LinkScore kind, Way way) {
  std::vector<float> found_NK(mask.links_NK.size());
  hebbline::link_scores(mask.links_NK.data(), mask.outputs, mask.inputs, kind, way, 2, found_NK.data());
  const std::vector<double> expected_NK = definition(mask, kind);
  for (size_t i = 0; i < found_NK.size(); ++i) {
    if (!(std::abs(found_NK[i] - expected_NK[i]) <= 1e-5 * expected_NK[i])) {
      std::printf("%ld x %ld, link %zu: %g instead of %g\n", static_cast<long>(mask.outputs),
                  static_cast<long>(mask.inputs), i, found_NK[i], expected_NK[i]);
      return false;
    }
  }
  return true;
}

bool check(Way way, const char* name) {
  int masks = 0;
  for (const int64_t outputs : {1, 4, 17, 64, 70}) {
    for (const int64_t inputs : {1, 3, 65, 130, 530}) {
      for (const double density : {0.0, 0.03, 0.4, 1.0}) {
        const Mask mask = random_mask(outputs, inputs, density);
        for (const auto kind : {LinkScore::kCh2, LinkScore::kCh3}) {
          if (!agrees(mask, kind, way)) return false;
          ++masks;
        }
      }
    }
  }
  std::printf("by %s: %d masks\n", name, masks);
  return true;
}

}  // namespace

int main() {
  if (!check(Way::kLinks, "links")) return 1;
  if (!hebbline::PairedScores::available()) return std::puts("by pairs: not on this processor") < 0;
  return check(Way::kPairs, "pairs") ? 0 : 1;
}
