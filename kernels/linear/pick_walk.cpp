#include "linear/pick_walk.h"

#include <numeric>

namespace hebbline {
namespace {

constexpr double kSortingGain = 0.9;  // sorted rows are stored one by one, which must pay
// Counting takes as long as a good part of packing: of many strips a few stand for all.
constexpr int64_t kCountedStrips = 32, kStripsPerCounted = 5;

}  // namespace

int64_t StepWalk::estimate_steps() const {
  const int64_t strips = (matrix_.rows + shape_.rows - 1) / shape_.rows;
  const int64_t stride = strips < kCountedStrips ? 1 : kStripsPerCounted;
  int64_t steps = 0, counted = 0;
  for (int64_t strip = 0; strip < strips; strip += stride, ++counted) {
    for_each_step(strip, [&](int64_t, int64_t, const Cursors&, const Cursors&) { ++steps; });
  }
  return counted == 0 ? 0 : steps * strips / counted;
}

Cursors StepWalk::cursors_at(int64_t strip) const {
  Cursors cursors;
  for (int64_t r = 0; r < shape_.rows && strip * shape_.rows + r < matrix_.rows; ++r) {
    const int64_t n = order_[strip * shape_.rows + r];
    cursors.next[r] = matrix_.row_offsets[n];
    cursors.end[r] = matrix_.row_offsets[n + 1];
  }
  return cursors;
}

// The least column that a row has left.
int64_t StepWalk::next_column(const Cursors& cursors) const {
  int64_t least = kNone;
  for (int64_t r = 0; r < shape_.rows; ++r) {
    if (cursors.next[r] < cursors.end[r]) least = std::min<int64_t>(least, matrix_.columns_Z[cursors.next[r]]);
  }
  return least;
}

// A row's links below `end`, as many as a step takes.
void StepWalk::advance(Cursors& cursors, int64_t r, int64_t end) const {
  int64_t& next = cursors.next[r];
  for (int64_t i = 0; i < shape_.links && next < cursors.end[r] && matrix_.columns_Z[next] < end; ++i) ++next;
}

RowOrder choose_row_order(const SparseMatrix& matrix, const StepShape& shape) {
  std::vector<int32_t> order(static_cast<size_t>(matrix.rows));
  std::iota(order.begin(), order.end(), 0);
  std::vector<int32_t> sorted = order;
  const auto length = [&](int32_t n) { return matrix.row_offsets[n + 1] - matrix.row_offsets[n]; };
  std::stable_sort(sorted.begin(), sorted.end(), [&](int32_t a, int32_t b) { return length(a) > length(b); });
  const int64_t steps = StepWalk(matrix, order, shape).estimate_steps();
  const int64_t sorted_steps = StepWalk(matrix, sorted, shape).estimate_steps();
  if (static_cast<double>(sorted_steps) < static_cast<double>(steps) * kSortingGain) {
    return {std::move(sorted), true, sorted_steps};
  }
  return {std::move(order), false, steps};
}

}  // namespace hebbline
