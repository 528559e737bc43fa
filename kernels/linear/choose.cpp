#include "linear/choose.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "linear/families.h"

namespace hebbline {
namespace {

constexpr std::array<int64_t, 7> kTypicalTokens{1, 2, 4, 8, 16, 64, 256};
constexpr double kCopyPenalty = 0.10;   // a second copy of the weight must save so much time somewhere
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
  Costs(const Workload& work, Isa isa) : families_(candidates(work, isa)) {
    for (const Family family : families_) {
      auto& row = relative_.emplace_back();
      for (size_t i = 0; i < kTypicalTokens.size(); ++i) {
        row[i] = cost_microseconds(family, work, isa, static_cast<double>(kTypicalTokens[i])) + kSmallestCost;
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

  // The sum where family `few` takes the first `count` numbers of tokens, and `many` the others.
  double sum(size_t few, size_t many, size_t count) const {
    double sum = few == many ? 0 : kCopyPenalty;
    for (size_t i = 0; i < kTypicalTokens.size(); ++i) sum += relative_[i < count ? few : many][i];
    return sum;
  }

 private:
  std::vector<Family> families_;
  std::vector<std::array<double, kTypicalTokens.size()>> relative_;
};

}  // namespace

Plan choose_plan(const Workload& work, Isa isa) {
  const Costs costs(work, isa);
  Plan best{};
  double least = std::numeric_limits<double>::infinity();
  for (size_t few = 0; few < costs.size(); ++few) {
    for (size_t many = 0; many < costs.size(); ++many) {
      for (size_t count = 1; count < (few == many ? 2 : kTypicalTokens.size()); ++count) {
        const double sum = costs.sum(few, many, count);
        if (sum >= least) continue;
        least = sum;
        best = {costs.family(few), costs.family(many), few == many ? kAlways : kTypicalTokens[count - 1] + 1};
      }
    }
  }
  return best;
}

}  // namespace hebbline
