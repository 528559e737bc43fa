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
constexpr int64_t kSlots = 32;  // links of integers in a step
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
  NarrowPicker(const SparseMatrix& matrix, const RowOrder& order, bool broad, bool unsigned_x)
      : lists(matrix, order.rows, step_shape(matrix, broad)),
        matrix_(matrix),
        broad_(broad),
        half_values_(matrix.values == ValueType::kInt4),
        unsigned_x_(unsigned_x) {
    lists.reserve(order.steps, kSlots, kSlots);  // at most
    lists.pack([this](int64_t start, const Cursors& from, const Cursors& to) { append_step(start, from, to); });
  }

  StepLists lists;

 private:
  void append_step(int64_t start, const Cursors& from, const Cursors& to) {
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
    append_bytes(lists.places, &step_places, sizeof step_places);
    append_bytes(lists.values, step_values, sizeof step_values);
  }

  static void append_bytes(std::vector<uint8_t>& all, const void* data, size_t size) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    all.insert(all.end(), bytes, bytes + size);
  }

  void append_halves(int64_t start, const Cursors& from, const Cursors& to) {
    const size_t place = lists.places.size(), value = lists.values.size();
    lists.places.resize(place + 2 * kNarrowRows);
    lists.values.resize(value + 4 * kNarrowRows);
    for (int64_t r = 0; r < kNarrowRows; ++r) {
      int64_t slot = r * 2;
      for (int64_t z = from.next[r]; z < to.next[r]; ++z, ++slot) {
        lists.places[place + slot] = static_cast<uint8_t>(2 * (matrix_.columns_Z[z] - start));
        const auto bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(matrix_.weights_Z[z]) >> 16);
        std::memcpy(lists.values.data() + value + 2 * slot, &bits, sizeof bits);
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
        lists.add_correction(r, unsigned_x_ ? -128 * weight : std::max(0, -weight));
      }
    }
    append(lists.places, step_places, !broad_);
    append(lists.values, step_values, half_values_);
  }

  uint8_t bits_of(int weight) const { return static_cast<uint8_t>(half_values_ ? weight + 8 : weight); }

  static void append(std::vector<uint8_t>& all, const uint8_t* slots, bool halves) {
    if (!halves) all.insert(all.end(), slots, slots + kSlots);
    for (int64_t i = 0; halves && i < kSlots / 2; ++i) {
      all.push_back(static_cast<uint8_t>(slots[i] | slots[i + kSlots / 2] << 4));
    }
  }

  const SparseMatrix& matrix_;
  bool broad_, half_values_, unsigned_x_;
};

const NarrowPickKernels& kernels_of(const SparseMatrix& matrix, Isa isa) {
  return isa == Isa::kAvx2Vnni && matrix.quantised() ? avx2vnni::kNarrowPickKernels : avx2::kNarrowPickKernels;
}

class NarrowPickPacking : public Packing {
 public:
  NarrowPickPacking(const SparseMatrix& matrix, Isa isa)
      : kernels_(kernels_of(matrix, isa)),
        value_type_(matrix.values),
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
    steps_ = PackedSteps(NarrowPicker(matrix, order, broad_, kernels_.unsigned_x).lists, rows_, order);
  }

  size_t bytes() const override { return steps_.bytes(); }

  void multiply(const Call& call, const Parallel& parallel) const override {
    if (call.tokens == 0 || rows_ == 0) return;
    const Rows x = round_tokens(call, parallel);
    const StripFinish finish{x.scales_M, call.bias_N, call.y_MN};
    const NarrowPickView weight{steps_.view(), value_type_, broad_};
    for_each_strip(strips_, kStripsPerTask, call.tokens, parallel, [&](int64_t strip, int64_t token, int64_t count) {
      kernels_.strip(weight, strip, x.data, x.stride, token, count, finish);
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
    const ByteActivations x =
        quantise_tokens(avx2::kByteKernels, call, columns_, columns_ + kBroadWindow, kernels_.unsigned_x, parallel);
    return {reinterpret_cast<const uint8_t*>(x.x_MK), x.stride, x.scales_M};
  }

  const NarrowPickKernels& kernels_;
  ValueType value_type_;
  bool broad_ = false;
  int64_t rows_, columns_, strips_;
  PackedSteps steps_;
};

}  // namespace

std::unique_ptr<Packing> pack_narrow_pick(const SparseMatrix& matrix, Isa isa) {
  return std::make_unique<NarrowPickPacking>(matrix, isa);
}

}  // namespace hebbline
