#include "linear/pick.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "linear/packing.h"
#include "platform/arithmetic.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kStripsPerTask = 4;
constexpr int64_t kTokensPerTask = 64;
constexpr int64_t kPackedPerTask = 8;   // tokens
constexpr int64_t kSegmentSteps = 256;  // sums of so many products of int8 fit int32, and of floats stay exact enough
constexpr int64_t kPadding = 16;        // words between tokens, so that they do not compete for the same cache lines
constexpr double kSortingGain = 0.9;    // sorted rows are stored one by one, which must pay
constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

// 4-bit values are stored as bytes.
Kind kind_of(ValueType values) { return values == ValueType::kInt4 ? Kind::kInt8 : values; }

// What a strip's rows still have to give: places in the matrix, one a row.
struct Cursors {
  std::array<int64_t, kLanes> next{}, end{};
};

// Cuts a matrix into steps.
class Picker {
 public:
  Picker(const SparseMatrix& matrix, std::vector<int32_t> order)
      : matrix_(matrix),
        kind_(kind_of(matrix.values)),
        order_(std::move(order)),
        width_(kind_ == Kind::kFloat32    ? 1
               : kind_ == Kind::kBfloat16 ? 2
                                          : 4),
        window_(kWindowBytes * width_ / 4),
        last_start_(ceil_div(std::max<int64_t>(matrix.columns, 1), window_) * window_ - window_) {}

  // The number of steps of a strip.
  int64_t count_steps(int64_t strip) {
    int64_t steps = 0;
    for_each_step(strip, [&](int64_t, int64_t, const Cursors&, const Cursors&) { ++steps; });
    return steps;
  }

  void pack_strip(int64_t strip) {
    segment_offsets.push_back(static_cast<int64_t>(segments.size()));
    int64_t current = -1;
    for_each_step(strip, [&](int64_t group, int64_t start, const Cursors& from, const Cursors& to) {
      const auto step = static_cast<int32_t>(windows.size());
      if (group != current || segments.back().last - segments.back().first == kSegmentSteps) {
        open_segment(strip, group, step);
        current = group;
      }
      append_step(start, from, to);
      segments.back().last = step + 1;
    });
  }

  std::vector<uint16_t> windows;
  std::vector<uint8_t> places, values;
  std::vector<Segment> segments;
  std::vector<int64_t> segment_offsets;
  std::vector<float> scales;
  std::vector<int32_t> corrections;

 private:
  // Calls visit(group, first column of the window, cursors before, cursors after) for each step of a strip.
  template <class Visit>
  void for_each_step(int64_t strip, const Visit& visit) {
    Cursors cursors = cursors_at(strip);
    for (int64_t column = next_column(cursors); column != kNone; column = next_column(cursors)) {
      const int64_t stride = window_ / 2, start = std::min(column / stride * stride, last_start_);
      const int64_t group = matrix_.groups == 1 ? 0 : column / matrix_.group_width;
      const int64_t group_end = matrix_.groups == 1 ? matrix_.columns : (group + 1) * matrix_.group_width;
      const Cursors before = cursors;
      for (int64_t r = 0; r < kLanes; ++r) advance(cursors, r, std::min(start + window_, group_end));
      visit(group, start, before, cursors);
    }
  }

  Cursors cursors_at(int64_t strip) const {
    Cursors cursors;
    for (int64_t r = 0; r < kLanes && strip * kLanes + r < matrix_.rows; ++r) {
      const int64_t n = order_[strip * kLanes + r];
      cursors.next[r] = matrix_.row_offsets[n];
      cursors.end[r] = matrix_.row_offsets[n + 1];
    }
    return cursors;
  }

  // The least column that a row has left.
  int64_t next_column(const Cursors& cursors) const {
    int64_t least = kNone;
    for (int64_t r = 0; r < kLanes; ++r) {
      if (cursors.next[r] < cursors.end[r]) least = std::min<int64_t>(least, matrix_.columns_Z[cursors.next[r]]);
    }
    return least;
  }

  // A row's links below `end`, as many as a step takes.
  void advance(Cursors& cursors, int64_t r, int64_t end) const {
    int64_t& next = cursors.next[r];
    for (int64_t i = 0; i < width_ && next < cursors.end[r] && matrix_.columns_Z[next] < end; ++i) ++next;
  }

  void open_segment(int64_t strip, int64_t group, int32_t step) {
    segments.push_back({step, step});
    if (kind_ != Kind::kInt8) return;
    for (int64_t r = 0; r < kLanes; ++r) {
      const int64_t i = strip * kLanes + r;
      scales.push_back(i < matrix_.rows ? matrix_.scales_NG[order_[i] * matrix_.groups + group] : 0.0F);
    }
    corrections.resize(corrections.size() + kLanes);
  }

  void append_step(int64_t start, const Cursors& from, const Cursors& to) {
    windows.push_back(static_cast<uint16_t>(start / (window_ / 2)));
    const size_t place = places.size(), value = values.size();
    places.resize(place + static_cast<size_t>(kLanes * width_));
    values.resize(value + kWindowBytes);
    for (int64_t r = 0; r < kLanes; ++r) {
      int64_t element = r * width_;
      for (int64_t z = from.next[r]; z < to.next[r]; ++z, ++element) {
        places[place + element] = static_cast<uint8_t>(matrix_.columns_Z[z] - start);
        write_value(values.data() + value + element * 4 / width_, matrix_.weights_Z[z]);
        if (kind_ == Kind::kInt8) {
          corrections[corrections.size() - kLanes + r] -= 128 * static_cast<int32_t>(matrix_.weights_Z[z]);
        }
      }
    }
  }

  void write_value(uint8_t* out, float weight) const {
    if (kind_ == Kind::kFloat32) std::memcpy(out, &weight, 4);
    if (kind_ == Kind::kBfloat16) {
      const auto half = static_cast<uint16_t>(std::bit_cast<uint32_t>(weight) >> 16);
      std::memcpy(out, &half, 2);
    }
    if (kind_ == Kind::kInt8) *out = static_cast<uint8_t>(static_cast<int8_t>(weight));
  }

  const SparseMatrix& matrix_;
  Kind kind_;
  std::vector<int32_t> order_;
  int64_t width_;       // columns of a unit, and links of a row in a step
  int64_t window_;      // columns
  int64_t last_start_;  // no window reaches past the padded end of X
};

std::vector<int32_t> natural_order(const SparseMatrix& matrix) {
  std::vector<int32_t> order(static_cast<size_t>(matrix.rows));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

std::vector<int32_t> sorted_order(const SparseMatrix& matrix) {
  std::vector<int32_t> order = natural_order(matrix);
  const auto length = [&](int32_t n) { return matrix.row_offsets[n + 1] - matrix.row_offsets[n]; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return length(a) > length(b); });
  return order;
}

int64_t count_steps(const SparseMatrix& matrix, const std::vector<int32_t>& order) {
  Picker picker(matrix, order);
  int64_t steps = 0;
  for (int64_t strip = 0; strip < ceil_div(matrix.rows, kLanes); ++strip) steps += picker.count_steps(strip);
  return steps;
}

class PickPacking : public Packing {
 public:
  PickPacking(const SparseMatrix& matrix, bool native_bfloat16)
      : kernels_(native_bfloat16 ? avx512bf16::kPickKernels : avx512::kPickKernels),
        kind_(kind_of(matrix.values)),
        rows_(matrix.rows),
        columns_(matrix.columns),
        strips_(ceil_div(matrix.rows, kLanes)) {
    const int64_t width = kind_ == Kind::kFloat32 ? 1 : kind_ == Kind::kBfloat16 ? 2 : 4;
    units_ = ceil_div(std::max<int64_t>(ceil_div(columns_, width), 1), kTileUnits) * kTileUnits;
    std::vector<int32_t> order = natural_order(matrix);
    const std::vector<int32_t> sorted = sorted_order(matrix);
    const auto steps = static_cast<double>(count_steps(matrix, order));
    if (static_cast<double>(count_steps(matrix, sorted)) < steps * kSortingGain) {
      order = sorted;
      order_ = buffer_of(sorted);
    }
    Picker picker(matrix, std::move(order));
    for (int64_t strip = 0; strip < strips_; ++strip) picker.pack_strip(strip);
    take(picker);
  }

  size_t bytes() const override {
    return windows_.bytes() + places_.bytes() + values_.bytes() + segments_.bytes() + scales_.bytes() +
           corrections_.bytes() + order_.bytes();
  }

  void multiply(const Call& call, const Parallel& parallel) const override {
    if (call.tokens == 0 || rows_ == 0) return;
    const int64_t stride = units_ + kPadding;
    const auto words = static_cast<size_t>(call.tokens * stride);
    auto* words_MU = reinterpret_cast<uint32_t*>(
        scratch(Scratch::kActivations, (words + static_cast<size_t>(call.tokens)) * sizeof(uint32_t)));
    auto* token_scales_M = reinterpret_cast<float*>(words_MU + words);
    pack_tokens(call, stride, words_MU, token_scales_M, parallel);
    const StripFinish finish{kind_ == Kind::kInt8 ? token_scales_M : nullptr, call.bias_N, call.y_MN};
    const PickView weight = view();
    const int64_t tasks = ceil_div(strips_, kStripsPerTask), groups = ceil_div(call.tokens, kTokensPerTask);
    parallel(static_cast<size_t>(tasks * groups), [&](size_t task) {
      const int64_t token = static_cast<int64_t>(task) / tasks * kTokensPerTask;
      const int64_t first = static_cast<int64_t>(task) % tasks * kStripsPerTask;
      const int64_t last_token = std::min(call.tokens, token + kTokensPerTask);
      // The strips of a task stay in the second-level cache, eight tokens in the first.
      for (int64_t m = token; m < last_token; m += kPickTokens) {
        for (int64_t strip = first; strip < std::min(strips_, first + kStripsPerTask); ++strip) {
          kernels_.strip(weight, strip, words_MU, stride, m, std::min(kPickTokens, last_token - m), finish);
        }
      }
    });
  }

 private:
  PickView view() const {
    return {kind_,
            rows_,
            windows_.as<uint16_t>(),
            places_.as<uint8_t>(),
            values_.as<uint8_t>(),
            segments_.as<Segment>(),
            segment_offsets_S_.data(),
            scales_.as<float>(),
            corrections_.as<int32_t>(),
            order_.bytes() > 0 ? order_.as<int32_t>() : nullptr};
  }

  void take(Picker& picker) {
    picker.segment_offsets.push_back(static_cast<int64_t>(picker.segments.size()));
    windows_ = buffer_of(picker.windows);
    places_ = buffer_of(picker.places);
    values_ = buffer_of(picker.values);
    segments_ = buffer_of(picker.segments);
    scales_ = buffer_of(picker.scales);
    corrections_ = buffer_of(picker.corrections);
    segment_offsets_S_ = std::move(picker.segment_offsets);
  }

  void pack_tokens(const Call& call, int64_t stride, uint32_t* words_MU, float* token_scales_M,
                   const Parallel& parallel) const {
    parallel(static_cast<size_t>(ceil_div(call.tokens, kPackedPerTask)), [&](size_t task) {
      const int64_t first = static_cast<int64_t>(task) * kPackedPerTask;
      for (int64_t m = first; m < std::min(call.tokens, first + kPackedPerTask); ++m) {
        token_scales_M[m] = avx512::kStripKernels.pack_token(kind_, call.x_MK + m * columns_, columns_, units_,
                                                             call.activation_scale.value_or(0), words_MU + m * stride);
      }
    });
  }

  const PickKernels& kernels_;
  Kind kind_;
  int64_t rows_, columns_, strips_, units_ = 0;
  Buffer windows_, places_, values_, segments_, scales_, corrections_, order_;
  std::vector<int64_t> segment_offsets_S_;
};

}  // namespace

std::unique_ptr<Packing> pack_pick(const SparseMatrix& matrix) {
  return std::make_unique<PickPacking>(matrix, cpu_features().avx512_bf16);
}

}  // namespace hebbline
