// Which packings a weight gets by the cost model alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "linear/cost.h"

namespace hebbline {

// As many copies of a weight as are worth their memory.
inline constexpr size_t kAnyCopies = std::numeric_limits<size_t>::max();

// A packing, and the calls that it takes.
struct PlanStep {
  Family family;
  int64_t until;  // calls of fewer tokens, which the steps before do not take
};

// The packings of a weight by rising numbers of tokens; the last one takes any number.
struct Plan {
  std::vector<PlanStep> steps;

  Family family(double tokens) const;
};

// The plan of one packing for all calls.
Plan plan_of(Family family);

// The plan for a weight on a processor, which need not be this machine's, whose time over the best time, summed
// over typical numbers of tokens, is least; each further copy must save some of that sum, and there are `most_copies`.
Plan choose_plan(const Workload& work, const Processor& processor, size_t most_copies = kAnyCopies);

}  // namespace hebbline
