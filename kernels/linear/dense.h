// The dense packing: all cells of a weight as float32, for weights of which little is left out and many tokens.
//
// Rows are taken in panels of as many as a few vectors hold, columns in blocks that stay in the first-level cache. A
// product of a panel by a few tokens keeps its sums in registers for a block.
//
// Legend: N rows, K columns, M tokens, P rows of a panel, T tokens of a task.
#pragma once

#include <cstddef>
#include <cstdint>

#include "platform/variants.h"

namespace hebbline {

inline constexpr int64_t kDenseBlock = 4096;  // cells of a panel in a block
inline constexpr int64_t kDenseRows = 128;    // of a task: they read the same X
inline constexpr int64_t kDenseTokens = 96;   // of a task, at most

// One instruction set's kernels.
struct DenseKernels {
  int64_t panel_rows;  // a divisor of kDenseRows
  // sums [count, panels x panel_rows] += X times panels, over `columns` columns. weight: [panels, columns,
  // panel_rows]; x: rows `stride` floats apart.
  void (*multiply)(const float* weight, int64_t panels, const float* x_MK, int64_t stride, int64_t count,
                   int64_t columns, float* sums);
};

HEBBLINE_DECLARE(DenseKernels, kDenseKernels)

}  // namespace hebbline
