// Which packings a weight gets by the cost model alone.
#pragma once

#include <cstdint>

#include "linear/cost.h"

namespace hebbline {

// Calls of fewer than `many_from` tokens go to `few`, others to `many`; where the two are the same family, one packed
// copy serves both.
struct Plan {
  Family few;
  Family many;
  int64_t many_from;

  Family family(double tokens) const { return tokens < static_cast<double>(many_from) ? few : many; }
};

// The plan for a weight on an instruction set, which need not be this machine's, whose time over the best time, summed
// over typical numbers of tokens, is least; a second copy must save some of that sum.
Plan choose_plan(const Workload& work, Isa isa);

}  // namespace hebbline
