#include "linear/pick.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "linear/packing.h"
#include "linear/pick_coded.h"
#include "linear/pick_walk.h"
#include "platform/arithmetic.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kStripsPerTask = 4;
constexpr int64_t kPackedPerTask = 8;  // tokens
constexpr int64_t kPadding = 16;       // words between tokens, so that they do not compete for the same cache lines

// 4-bit values are stored as bytes.
Kind kind_of(ValueType values) { return values == ValueType::kInt4 ? Kind::kInt8 : values; }

int64_t columns_per_unit(Kind kind) { return kind == Kind::kFloat32 ? 1 : kind == Kind::kBfloat16 ? 2 : 4; }

// Units of X that a window of so many bytes needs, in whole vectors.
int64_t padded_units(const SparseMatrix& matrix, int64_t window_bytes) {
  const int64_t units = std::max(ceil_div(matrix.columns, columns_per_unit(kind_of(matrix.values))), window_bytes / 4);
  return round_up(units, kTileUnits);
}

// Windows do not reach past the padded end of X.
StepShape step_shape(const SparseMatrix& matrix, int64_t window_bytes) {
  const int64_t width = columns_per_unit(kind_of(matrix.values)), window = window_bytes * width / 4;
  const int64_t columns = padded_units(matrix, window_bytes) * width;
  return {kLanes, width, window, kWindowStride * width / 4, columns - window};
}

// Packs a matrix, step by step.
class Picker {
 public:
  Picker(const SparseMatrix& matrix, const RowOrder& order, const StepShape& shape)
      : lists(matrix, order.rows, shape),
        matrix_(matrix),
        kind_(kind_of(matrix.values)),
        width_(columns_per_unit(kind_)) {
    lists.reserve(order.steps, kLanes * width_, kWindowBytes);
    lists.pack([this](int64_t start, const Cursors& from, const Cursors& to) { append_step(start, from, to); });
  }

  StepLists lists;

 private:
  void append_step(int64_t start, const Cursors& from, const Cursors& to) {
    const size_t place = lists.places.size(), value = lists.values.size();
    lists.places.resize(place + static_cast<size_t>(kLanes * width_));
    lists.values.resize(value + kWindowBytes);
    for (int64_t r = 0; r < kLanes; ++r) {
      int64_t element = r * width_;
      for (int64_t z = from.next[r]; z < to.next[r]; ++z, ++element) {
        lists.places[place + element] = static_cast<uint8_t>(matrix_.columns_Z[z] - start);
        write_value(lists.values.data() + value + element * 4 / width_, matrix_.weights_Z[z]);
        if (kind_ == Kind::kInt8) lists.add_correction(r, -128 * static_cast<int32_t>(matrix_.weights_Z[z]));
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
  int64_t width_;  // columns of a unit, and links of a row in a step
};

enum class Steps { kPlain, kBroad, kCoded };

class PickPacking : public Packing {
 public:
  PickPacking(const SparseMatrix& matrix, Steps steps, bool native_bfloat16)
      : kernels_(native_bfloat16 ? avx512bf16::kPickKernels : avx512::kPickKernels),
        kind_(kind_of(matrix.values)),
        is_broad_(steps == Steps::kBroad),
        rows_(matrix.rows),
        columns_(matrix.columns),
        strips_(ceil_div(matrix.rows, kLanes)) {
    const int64_t window_bytes = is_broad_ ? kBroadWindowBytes : kWindowBytes;
    units_ = padded_units(matrix, window_bytes);
    const StepShape shape = step_shape(matrix, window_bytes);
    const RowOrder order = choose_row_order(matrix, shape);
    if (steps == Steps::kCoded) {
      const CodedSteps coded = pack_coded(matrix, order, shape);
      steps_ = PackedSteps(coded.lists, rows_, order);
      tables_ = buffer_of(coded.tables);
    } else {
      steps_ = PackedSteps(Picker(matrix, order, shape).lists, rows_, order);
    }
  }

  size_t bytes() const override { return steps_.bytes() + tables_.bytes(); }

  void multiply(const Call& call, const Parallel& parallel) const override {
    if (call.tokens == 0 || rows_ == 0) return;
    const int64_t stride = units_ + kPadding;
    const auto words = static_cast<size_t>(call.tokens * stride);
    auto* words_MU = reinterpret_cast<uint32_t*>(
        scratch(Scratch::kActivations, (words + static_cast<size_t>(call.tokens)) * sizeof(uint32_t)));
    auto* token_scales_M = reinterpret_cast<float*>(words_MU + words);
    pack_tokens(call, stride, words_MU, token_scales_M, parallel);
    const StripFinish finish{kind_ == Kind::kInt8 ? token_scales_M : nullptr, call.bias_N, call.y_MN};
    const PickView weight{steps_.view(), kind_, is_broad_, tables_.bytes() > 0 ? tables_.as<uint8_t>() : nullptr};
    for_each_strip(strips_, kStripsPerTask, call.tokens, parallel, [&](int64_t strip, int64_t token, int64_t count) {
      kernels_.strip(weight, strip, words_MU, stride, token, count, finish);
    });
  }

 private:
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
  bool is_broad_;
  int64_t rows_, columns_, strips_, units_ = 0;
  PackedSteps steps_;
  Buffer tables_;
};

}  // namespace

std::unique_ptr<Packing> pack_pick(const SparseMatrix& matrix) {
  return std::make_unique<PickPacking>(matrix, Steps::kPlain, cpu_features().avx512_bf16);
}

std::unique_ptr<Packing> pack_broad(const SparseMatrix& matrix) {
  return std::make_unique<PickPacking>(matrix, Steps::kBroad, cpu_features().avx512_bf16);
}

std::unique_ptr<Packing> pack_coded(const SparseMatrix& matrix) {
  return std::make_unique<PickPacking>(matrix, Steps::kCoded, cpu_features().avx512_bf16);
}

}  // namespace hebbline
