// Which packings a weight gets, and which of them multiplies how many tokens.
#pragma once

#include <memory>
#include <string>

#include "linear/choose.h"
#include "linear/packing.h"

namespace hebbline {

// The plan for a weight; `blocks`: its links are whole blocks. Throws std::runtime_error where the environment variable
// HEBBLINE_FAMILY (a name in families.cpp: for tests and benchmarks) names a family that cannot hold the weight on this
// instruction set.
Plan make_plan(const SparseMatrix& matrix, Isa isa, bool blocks);

// The weight, packed by its plan.
std::unique_ptr<Packing> pack(const SparseMatrix& matrix, Isa isa, bool blocks);

}  // namespace hebbline
