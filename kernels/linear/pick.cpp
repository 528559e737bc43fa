#include "linear/pick.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "linear/packing.h"
#include "linear/pick_walk.h"
#include "platform/arithmetic.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kStripsPerTask = 4;
constexpr int64_t kTokensPerTask = 64;
constexpr int64_t kPackedPerTask = 8;   // tokens
constexpr int64_t kSegmentSteps = 256;  // sums of so many products of int8 fit int32, and of floats stay exact enough
constexpr int64_t kPadding = 16;        // words between tokens, so that they do not compete for the same cache lines

// 4-bit values are stored as bytes.
Kind kind_of(ValueType values) { return values == ValueType::kInt4 ? Kind::kInt8 : values; }

int64_t columns_per_unit(Kind kind) { return kind == Kind::kFloat32 ? 1 : kind == Kind::kBfloat16 ? 2 : 4; }

// Windows do not reach past the padded end of X.
StepShape step_shape(const SparseMatrix& matrix) {
  const int64_t width = columns_per_unit(kind_of(matrix.values)), window = kWindowBytes * width / 4;
  const int64_t windows = ceil_div(std::max<int64_t>(matrix.columns, 1), window);
  return {kLanes, width, window, window / 2, (windows - 1) * window};
}

// Packs a matrix, step by step.
class Picker {
 public:
  Picker(const SparseMatrix& matrix, std::vector<int32_t> order)
      : matrix_(matrix),
        kind_(kind_of(matrix.values)),
        width_(columns_per_unit(kind_)),
        window_(kWindowBytes * width_ / 4),
        walk_(matrix, std::move(order), step_shape(matrix)) {}

  void pack_strip(int64_t strip) {
    segment_offsets.push_back(static_cast<int64_t>(segments.size()));
    int64_t current = -1;
    walk_.for_each_step(strip, [&](int64_t group, int64_t start, const Cursors& from, const Cursors& to) {
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
  void open_segment(int64_t strip, int64_t group, int32_t step) {
    segments.push_back({step, step});
    if (kind_ != Kind::kInt8) return;
    for (int64_t r = 0; r < kLanes; ++r) {
      const int64_t i = strip * kLanes + r;
      scales.push_back(i < matrix_.rows ? matrix_.scales_NG[walk_.order()[i] * matrix_.groups + group] : 0.0F);
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
  int64_t width_;   // columns of a unit, and links of a row in a step
  int64_t window_;  // columns
  StepWalk walk_;
};

class PickPacking : public Packing {
 public:
  PickPacking(const SparseMatrix& matrix, bool native_bfloat16)
      : kernels_(native_bfloat16 ? avx512bf16::kPickKernels : avx512::kPickKernels),
        kind_(kind_of(matrix.values)),
        rows_(matrix.rows),
        columns_(matrix.columns),
        strips_(ceil_div(matrix.rows, kLanes)) {
    const int64_t units = std::max<int64_t>(ceil_div(columns_, columns_per_unit(kind_)), 1);
    units_ = ceil_div(units, kTileUnits) * kTileUnits;
    RowOrder order = choose_row_order(matrix, step_shape(matrix));
    if (order.sorted) order_ = buffer_of(order.rows);
    Picker picker(matrix, std::move(order.rows));
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
