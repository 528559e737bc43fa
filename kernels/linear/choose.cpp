#include "linear/choose.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "linear/families.h"

namespace hebbline {
namespace {

constexpr std::array<int64_t, 7> kTypicalTokens{1, 2, 4, 8, 16, 64, 256};
constexpr double kCopyPenalty = 0.10;   // each further copy of the weight must save so much time somewhere
constexpr double kSmallestCost = 0.01;  // microseconds; layers of nothing cost something
constexpr int64_t kAlways = std::numeric_limits<int64_t>::max();

// The families that can hold a weight; kPanel only where its links are whole blocks.
std::vector<Family> candidates(const Workload& work, Isa isa) {
  std::vector<Family> families;
  for (const Family family : all_families()) {
    if (can_hold(family, work, isa) && (family != Family::kPanel || work.vectors > 0)) {
      families.push_back(family);
    }
  }
  return families;
}

// Costs of the families at the typical numbers of tokens, each over the least there.
class Costs {
 public:
  Costs(const Workload& work, const Processor& processor) : families_(candidates(work, processor.isa)) {
    for (const Family family : families_) {
      auto& row = relative_.emplace_back();
      for (size_t i = 0; i < kTypicalTokens.size(); ++i) {
        row[i] = cost_microseconds(family, work, processor, static_cast<double>(kTypicalTokens[i])) + kSmallestCost;
      }
    }
    for (size_t i = 0; i < kTypicalTokens.size(); ++i) {
      double least = std::numeric_limits<double>::infinity();
      for (const auto& row : relative_) least = std::min(least, row[i]);
      for (auto& row : relative_) row[i] /= least;
    }
  }

  size_t size() const { return families_.size(); }
  Family family(size_t f) const { return families_[f]; }

  double relative(size_t f, size_t i) const { return relative_[f][i]; }

 private:
  std::vector<Family> families_;
  std::vector<std::array<double, kTypicalTokens.size()>> relative_;
};

}  // namespace

Family Plan::family(double tokens) const {
  for (const PlanStep& step : steps) {
    if (tokens < static_cast<double>(step.until)) return step.family;
  }
  return steps.back().family;
}

Plan plan_of(Family family) { return {{{family, kAlways}}}; }

// The least sums up to each number of tokens that end in each family, with no more copies than `c` + 1, and the family
// before it: a shortest path.
Plan choose_plan(const Workload& work, const Processor& processor, size_t most_copies) {
  const Costs costs(work, processor);
  const size_t copies = std::clamp<size_t>(most_copies, 1, kTypicalTokens.size());
  std::vector<std::vector<double>> sums(copies, std::vector<double>(costs.size(), 0.0));
  std::array<std::vector<std::vector<size_t>>, kTypicalTokens.size()> before;
  for (size_t i = 0; i < kTypicalTokens.size(); ++i) {
    before[i].resize(copies);
    for (size_t c = copies; c-- > 0;) {  // the sums with a copy less are still those of the number of tokens before
      size_t least = 0;
      double switched = std::numeric_limits<double>::infinity();
      if (c > 0) {
        least = static_cast<size_t>(std::ranges::min_element(sums[c - 1]) - sums[c - 1].begin());
        switched = sums[c - 1][least] + kCopyPenalty;
      }
      for (size_t f = 0; f < costs.size(); ++f) {
        const bool stays = i == 0 || sums[c][f] <= switched;
        before[i][c].push_back(stays ? f : least);
        sums[c][f] = (stays ? sums[c][f] : switched) + costs.relative(f, i);
      }
    }
  }
  size_t c = copies - 1;
  auto f = static_cast<size_t>(std::ranges::min_element(sums[c]) - sums[c].begin());
  Plan plan = plan_of(costs.family(f));
  for (size_t i = kTypicalTokens.size() - 1; i > 0; --i) {
    if (before[i][c][f] == f) continue;
    f = before[i][c--][f];
    plan.steps.insert(plan.steps.begin(), {costs.family(f), kTypicalTokens[i - 1] + 1});
  }
  return plan;
}

}  // namespace hebbline
