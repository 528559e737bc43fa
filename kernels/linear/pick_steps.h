// What the packings of picked columns, wide (pick.h) and narrow (pick_narrow.h), have in common: the lists of steps
// that a weight is packed into, and the walk over its strips and the tokens of a call.
//
// Legend: M tokens, S strips, T steps, R rows of a strip.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "linear/pick_walk.h"
#include "linear/strips.h"
#include "platform/arithmetic.h"
#include "platform/memory.h"
#include "platform/parallel.h"

namespace hebbline {

inline constexpr int64_t kPickTokens = 8;  // tokens, at most, a step is multiplied by before the next

// What a kernel reads of the steps; what their places and values look like is of the packing's own.
struct StepsView {
  int64_t rows;
  const uint16_t* windows_T;         // the first column of the window / the stride of windows
  const uint8_t* places;             // of links within the window
  const uint8_t* values;             // places without a link hold 0
  const Segment* segments;           // of steps, counted from the first of all; up to 256, in one group of scales
  const int64_t* segment_offsets_S;  // [S + 1]
  const float* scales;               // integers: [segments, R]
  const int32_t* corrections;        // integers: what a segment's sums begin with, [segments, R]
  const int32_t* order;              // row of each lane, [S x R]; null: lane i is row i
};

// Lists that grow while a weight is packed.
class StepLists {
 public:
  StepLists(const SparseMatrix& matrix, std::vector<int32_t> order, const StepShape& shape)
      : matrix_(matrix), shape_(shape), walk_(matrix, std::move(order), shape) {}

  // Cuts all strips into steps. append(first column of the window, cursors before, cursors after) adds what the kernels
  // take of a step to `places` and `values`, and to the corrections of its rows.
  template <class Append>
  void pack(const Append& append) {
    for (int64_t strip = 0; strip * shape_.rows < matrix_.rows; ++strip) {
      begin_strip();
      pack_strip(walk_, strip, append);
    }
    begin_strip();
  }

  // The same strip by strip, for a weight in several parts: begin_strip() before each strip and after the last, and
  // pack_strip() for each part of it.
  void begin_strip() { segment_offsets.push_back(static_cast<int64_t>(segments.size())); }

  template <class Append>
  void pack_strip(const StepWalk& walk, int64_t strip, const Append& append) {
    int64_t current = -1;
    walk.for_each_step(strip, [&](int64_t group, int64_t start, const Cursors& from, const Cursors& to) {
      if (group != current || segments.back().last - segments.back().first == kSegmentSteps) {
        open_segment(strip, group);
      }
      current = group;
      windows.push_back(static_cast<uint16_t>(start / shape_.stride));
      append(start, from, to);
      ++segments.back().last;
    });
  }

  // Room for about so many steps, of so many bytes of places and values each.
  void reserve(int64_t steps, int64_t place_bytes, int64_t value_bytes) {
    const auto room = static_cast<size_t>(steps + steps / 16 + 16);
    windows.reserve(room);
    places.reserve(room * static_cast<size_t>(place_bytes));
    values.reserve(room * static_cast<size_t>(value_bytes));
  }

  void add_correction(int64_t row, int32_t amount) { corrections[corrections.size() - shape_.rows + row] += amount; }

  std::vector<uint16_t> windows;
  std::vector<uint8_t> places, values;
  std::vector<Segment> segments;
  std::vector<int64_t> segment_offsets;
  std::vector<float> scales;
  std::vector<int32_t> corrections;

 private:
  static constexpr int32_t kSegmentSteps = 256;  // sums of so many products of floats stay exact enough

  void open_segment(int64_t strip, int64_t group);

  const SparseMatrix& matrix_;
  StepShape shape_;
  StepWalk walk_;
};

// The lists in memory that stays.
class PackedSteps {
 public:
  PackedSteps() = default;
  PackedSteps(const StepLists& lists, int64_t rows, const RowOrder& order);

  size_t bytes() const;
  StepsView view() const;

 private:
  int64_t rows_ = 0;
  Buffer windows_, places_, values_, segments_, scales_, corrections_, order_;
  std::vector<int64_t> segment_offsets_S_;
};

// Calls multiply(strip, token, count) for all strips and tokens, up to kPickTokens at a time. The strips of a task stay
// in the second-level cache, the tokens of a step in the first.
template <class Multiply>
void for_each_strip(int64_t strips, int64_t strips_per_task, int64_t tokens, const Parallel& parallel,
                    const Multiply& multiply) {
  constexpr int64_t kTokensPerTask = 64;
  const int64_t tasks = ceil_div(strips, strips_per_task), groups = ceil_div(tokens, kTokensPerTask);
  parallel(static_cast<size_t>(tasks * groups), [&](size_t task) {
    const int64_t token = static_cast<int64_t>(task) / tasks * kTokensPerTask;
    const int64_t first = static_cast<int64_t>(task) % tasks * strips_per_task;
    const int64_t last_token = std::min(tokens, token + kTokensPerTask);
    for (int64_t m = token; m < last_token; m += kPickTokens) {
      for (int64_t strip = first; strip < std::min(strips, first + strips_per_task); ++strip) {
        multiply(strip, m, std::min(kPickTokens, last_token - m));
      }
    }
  });
}

}  // namespace hebbline
