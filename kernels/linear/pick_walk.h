// How rows are cut into steps by the packings of picked columns, wide (pick.h) and narrow (pick_narrow.h).
//
// A strip is as many rows as a step has lanes. A step is a window of columns, and up to so many links of each row
// within it. Rows move on at their own pace: a step serves the row that is furthest behind, and what the others have in
// its window.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "linear/matrix.h"

namespace hebbline {

struct StepShape {
  int64_t rows;        // of a strip, up to 16
  int64_t links;       // of a row in a step
  int64_t window;      // columns
  int64_t stride;      // windows start at multiples of it
  int64_t last_start;  // no window starts later
};

// What a strip's rows still have to give: places in the matrix, one a row.
struct Cursors {
  std::array<int64_t, 16> next{}, end{};
};

class StepWalk {
 public:
  // `order`: the row of each lane of all strips. The matrix is kept by reference.
  StepWalk(const SparseMatrix& matrix, std::vector<int32_t> order, const StepShape& shape)
      : matrix_(matrix), order_(std::move(order)), shape_(shape) {}

  const std::vector<int32_t>& order() const { return order_; }

  // Calls visit(group, first column of the window, cursors before, cursors after) for each step of a strip.
  template <class Visit>
  void for_each_step(int64_t strip, const Visit& visit) const {
    Cursors cursors = cursors_at(strip);
    for (int64_t column = next_column(cursors); column != kNone; column = next_column(cursors)) {
      const int64_t start = std::min(column / shape_.stride * shape_.stride, shape_.last_start);
      const int64_t group = matrix_.groups == 1 ? 0 : column / matrix_.group_width;
      const int64_t group_end = matrix_.groups == 1 ? matrix_.columns : (group + 1) * matrix_.group_width;
      const Cursors before = cursors;
      for (int64_t r = 0; r < shape_.rows; ++r) advance(cursors, r, std::min(start + shape_.window, group_end));
      visit(group, start, before, cursors);
    }
  }

  // Of all strips: counted in a weight of few, of others by every fifth strip.
  int64_t estimate_steps() const;

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

  Cursors cursors_at(int64_t strip) const;
  int64_t next_column(const Cursors& cursors) const;
  void advance(Cursors& cursors, int64_t r, int64_t end) const;

  const SparseMatrix& matrix_;
  std::vector<int32_t> order_;
  StepShape shape_;
};

// The rows as they come, or sorted by their number of links where that saves so many steps that storing results one by
// one pays.
struct RowOrder {
  std::vector<int32_t> rows;
  bool sorted;
  int64_t steps;  // about
};
RowOrder choose_row_order(const SparseMatrix& matrix, const StepShape& shape);

}  // namespace hebbline
