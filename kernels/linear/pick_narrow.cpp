#include "linear/pick_narrow.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <vector>

#include "linear/bytes.h"
#include "linear/packing.h"
#include "linear/pick_walk.h"
#include "platform/arithmetic.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kStripsPerTask = 8;
constexpr int64_t kTokensPerTask = 64;
constexpr int64_t kSlots = 32;          // links of integers in a step
constexpr int64_t kSegmentSteps = 256;  // sums of so many products of floats stay exact enough
// A step of a broad window takes so much longer than one of a narrow window, by its bytes and its two permutations.
constexpr double kBroadStep = 1.2;

int64_t value_bytes(const SparseMatrix& matrix) {
  return matrix.quantised() ? 1 : matrix.values == ValueType::kBfloat16 ? 2 : 4;
}

StepShape step_shape(const SparseMatrix& matrix, bool broad) {
  const int64_t bytes = value_bytes(matrix), window = (broad ? kBroadWindow : kNarrowWindow) / bytes;
  // X of float32 is read where it is, which must not be read past its end.
  const int64_t last_start = bytes == 4 ? matrix.columns - window : std::numeric_limits<int64_t>::max();
  return {kNarrowRows, 4 / bytes, window, 1, last_start};
}

// Packs a matrix, step by step.
class NarrowPicker {
 public:
  NarrowPicker(const SparseMatrix& matrix, std::vector<int32_t> order, bool broad)
      : matrix_(matrix),
        broad_(broad),
        half_values_(matrix.values == ValueType::kInt4),
        walk_(matrix, std::move(order), step_shape(matrix, broad)) {}

  void pack_strip(int64_t strip) {
    segment_offsets.push_back(static_cast<int64_t>(segments.size()));
    int64_t current = -1;
    walk_.for_each_step(strip, [&](int64_t group, int64_t start, const Cursors& from, const Cursors& to) {
      const auto step = static_cast<int32_t>(windows.size());
      const bool full = !matrix_.quantised() && step % kSegmentSteps == 0;
      if (group != current || full) open_segment(strip, group, step);
      current = group;
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
  void open_segment(int64_t strip, int64_t group, int32_t step) {
    segments.push_back({step, step});
    if (!matrix_.quantised()) return;
    for (int64_t r = 0; r < kNarrowRows; ++r) {
      const int64_t i = strip * kNarrowRows + r;
      scales.push_back(i < matrix_.rows ? matrix_.scales_NG[walk_.order()[i] * matrix_.groups + group] : 0.0F);
    }
    corrections.resize(corrections.size() + kNarrowRows);
  }

  void append_step(int64_t start, const Cursors& from, const Cursors& to) {
    windows.push_back(static_cast<uint16_t>(start));
    if (matrix_.quantised()) return append_integers(start, from, to);
    matrix_.values == ValueType::kBfloat16 ? append_halves(start, from, to) : append_floats(start, from, to);
  }

  void append_floats(int64_t start, const Cursors& from, const Cursors& to) {
    uint32_t step_places = 0;
    float step_values[kNarrowRows] = {};
    for (int64_t r = 0; r < kNarrowRows; ++r) {
      if (from.next[r] == to.next[r]) continue;
      step_places |= static_cast<uint32_t>(matrix_.columns_Z[from.next[r]] - start) << 4 * r;
      step_values[r] = matrix_.weights_Z[from.next[r]];
    }
    append_bytes(places, &step_places, sizeof step_places);
    append_bytes(values, step_values, sizeof step_values);
  }

  static void append_bytes(std::vector<uint8_t>& all, const void* data, size_t size) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    all.insert(all.end(), bytes, bytes + size);
  }

  void append_halves(int64_t start, const Cursors& from, const Cursors& to) {
    const size_t place = places.size(), value = values.size();
    places.resize(place + 2 * kNarrowRows);
    values.resize(value + 4 * kNarrowRows);
    for (int64_t r = 0; r < kNarrowRows; ++r) {
      int64_t slot = r * 2;
      for (int64_t z = from.next[r]; z < to.next[r]; ++z, ++slot) {
        places[place + slot] = static_cast<uint8_t>(2 * (matrix_.columns_Z[z] - start));
        const auto bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(matrix_.weights_Z[z]) >> 16);
        std::memcpy(values.data() + value + 2 * slot, &bits, sizeof bits);
      }
    }
  }

  void append_integers(int64_t start, const Cursors& from, const Cursors& to) {
    uint8_t step_places[kSlots] = {}, step_values[kSlots];
    std::fill_n(step_values, kSlots, bits_of(0));
    for (int64_t r = 0; r < kNarrowRows; ++r) {
      int64_t slot = r * 4;
      for (int64_t z = from.next[r]; z < to.next[r]; ++z, ++slot) {
        step_places[slot] = static_cast<uint8_t>(matrix_.columns_Z[z] - start);
        const auto weight = static_cast<int32_t>(matrix_.weights_Z[z]);
        step_values[slot] = bits_of(weight);
        corrections[corrections.size() - kNarrowRows + r] += std::max(0, -weight);
      }
    }
    append(places, step_places, !broad_);
    append(values, step_values, half_values_);
  }

  uint8_t bits_of(int weight) const { return static_cast<uint8_t>(half_values_ ? weight + 8 : weight); }

  static void append(std::vector<uint8_t>& all, const uint8_t* slots, bool halves) {
    if (!halves) all.insert(all.end(), slots, slots + kSlots);
    for (int64_t i = 0; halves && i < kSlots / 2; ++i) {
      all.push_back(static_cast<uint8_t>(slots[i] | slots[i + kSlots / 2] << 4));
    }
  }

  const SparseMatrix& matrix_;
  bool broad_, half_values_;
  StepWalk walk_;
};

class NarrowPickPacking : public Packing {
 public:
  explicit NarrowPickPacking(const SparseMatrix& matrix)
      : value_type_(matrix.values),
        rows_(matrix.rows),
        columns_(matrix.columns),
        strips_(ceil_div(matrix.rows, kNarrowRows)) {
    RowOrder order = choose_row_order(matrix, step_shape(matrix, true));
    broad_ = true;
    if (matrix.values != ValueType::kFloat32) {
      RowOrder narrow_order = choose_row_order(matrix, step_shape(matrix, false));
      broad_ = kBroadStep * static_cast<double>(order.steps) < static_cast<double>(narrow_order.steps);
      if (!broad_) order = std::move(narrow_order);
    }
    if (order.sorted) order_ = buffer_of(order.rows);
    NarrowPicker picker(matrix, std::move(order.rows), broad_);
    for (int64_t strip = 0; strip < strips_; ++strip) picker.pack_strip(strip);
    take(picker);
  }

  size_t bytes() const override {
    return windows_.bytes() + places_.bytes() + values_.bytes() + segments_.bytes() + scales_.bytes() +
           corrections_.bytes() + order_.bytes();
  }

  void multiply(const Call& call, const Parallel& parallel) const override {
    if (call.tokens == 0 || rows_ == 0) return;
    const Rows x = round_tokens(call, parallel);
    const StripFinish finish{x.scales_M, call.bias_N, call.y_MN};
    const NarrowPickView weight = view();
    const int64_t tasks = ceil_div(strips_, kStripsPerTask), groups = ceil_div(call.tokens, kTokensPerTask);
    parallel(static_cast<size_t>(tasks * groups), [&](size_t task) {
      const int64_t token = static_cast<int64_t>(task) / tasks * kTokensPerTask;
      const int64_t first = static_cast<int64_t>(task) % tasks * kStripsPerTask;
      const int64_t last_token = std::min(call.tokens, token + kTokensPerTask);
      for (int64_t m = token; m < last_token; m += kNarrowTokens) {
        for (int64_t strip = first; strip < std::min(strips_, first + kStripsPerTask); ++strip) {
          avx2::kNarrowPickKernels.strip(weight, strip, x.data, x.stride, m, std::min(kNarrowTokens, last_token - m),
                                         finish);
        }
      }
    });
  }

 private:
  // X as the kernels take it.
  struct Rows {
    const uint8_t* data;
    int64_t stride;  // bytes
    const float* scales_M;
  };

  Rows round_tokens(const Call& call, const Parallel& parallel) const {
    if (value_type_ == ValueType::kFloat32) {
      return {reinterpret_cast<const uint8_t*>(call.x_MK), columns_ * static_cast<int64_t>(sizeof(float)), nullptr};
    }
    if (value_type_ == ValueType::kBfloat16) {
      const HalfActivations x = halve_tokens(avx2::kByteKernels, call, columns_, columns_ + kBroadWindow, parallel);
      return {reinterpret_cast<const uint8_t*>(x.x_MK), 2 * x.stride, nullptr};
    }
    const ByteActivations x = quantise_tokens(avx2::kByteKernels, call, columns_, columns_ + kBroadWindow, parallel);
    return {reinterpret_cast<const uint8_t*>(x.x_MK), x.stride, x.scales_M};
  }

  NarrowPickView view() const {
    return {rows_,
            value_type_,
            broad_,
            windows_.as<uint16_t>(),
            places_.as<uint8_t>(),
            values_.as<uint8_t>(),
            segments_.as<Segment>(),
            segment_offsets_S_.data(),
            scales_.as<float>(),
            corrections_.as<int32_t>(),
            order_.bytes() > 0 ? order_.as<int32_t>() : nullptr};
  }

  void take(NarrowPicker& picker) {
    picker.segment_offsets.push_back(static_cast<int64_t>(picker.segments.size()));
    windows_ = buffer_of(picker.windows);
    places_ = buffer_of(picker.places);
    values_ = buffer_of(picker.values);
    segments_ = buffer_of(picker.segments);
    scales_ = buffer_of(picker.scales);
    corrections_ = buffer_of(picker.corrections);
    segment_offsets_S_ = std::move(picker.segment_offsets);
  }

  ValueType value_type_;
  bool broad_ = false;
  int64_t rows_, columns_, strips_;
  Buffer windows_, places_, values_, segments_, scales_, corrections_, order_;
  std::vector<int64_t> segment_offsets_S_;
};

}  // namespace

std::unique_ptr<Packing> pack_narrow_pick(const SparseMatrix& matrix) {
  return std::make_unique<NarrowPickPacking>(matrix);
}

}  // namespace hebbline
