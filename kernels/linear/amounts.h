// What each family does for a call: links times passes, bytes, cells of X and Y. `cost.h` turns these amounts into a
// time.
#pragma once

#include <array>
#include <cstddef>

#include "linear/families.h"
#include "platform/cpu.h"

namespace hebbline {

// What a call is made of. An item is what a family's innermost loop takes at a time: a link (csr, sell), a vector of 16
// rows (tile, panel), a step (pick), four links (quad), a cell (dense).
enum class Term {
  kCall,         // 1
  kOne,          // items x passes of one token
  kTwo,          // of two
  kFour,         // of up to four
  kEight,        // of up to eight
  kPasses,       // items x wider passes
  kWide,         // items x vectors of tokens in wider passes
  kHalves,       // as kWide, where those vectors hold twice as many bfloat16, or are AMX tiles
  kFar,          // vectors of X that the first cache does not hold, x how often they are read
  kPieces,       // pieces of rows that are summed apart, by blocks of columns or by scales, x passes
  kBytes,        // of the weight, read from memory
  kCachedBytes,  // of the weight, read from a cache
  kActivations,  // cells of X
  kNarrow,       // cells of X, of families that take up to 8 tokens in another way
  kOutputs,      // cells of Y
};
inline constexpr size_t kTerms = 15;

using Amounts = std::array<double, kTerms>;  // by Term

// Where a call finds the weight: in memory, as in a model larger than the caches, or in a cache.
enum class Found { kMemory, kCache };

// The amounts of one call of `tokens` tokens.
Amounts amounts(Family family, const Workload& work, Isa isa, double tokens, Found found);

// Those of ONNX Runtime's dense float32 MatMul, which everything is compared with.
Amounts baseline_amounts(const Workload& work, double tokens, Found found);

// Bytes of the packing that a call reads.
double packed_bytes(Family family, const Workload& work, Isa isa);

}  // namespace hebbline
