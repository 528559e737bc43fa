#include "linear/sell.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <vector>

#include "linear/activations.h"
#include "linear/packing.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kTokensPerPass = 4;
constexpr int64_t kStepsPerTask = 1024;  // a few microseconds of gathers

class SellPacking : public Packing {
 public:
  explicit SellPacking(const SparseMatrix& matrix)
      : values_(matrix.values), bfloat16_(matrix.fits_bfloat16()), rows_(matrix.rows), columns_(matrix.columns) {
    row_scales_N_ = matrix.row_scales();
    sort_rows(matrix);
    fill(matrix);
  }

  size_t bytes() const override { return places_.bytes() + packed_.bytes() + order_.size() * sizeof(int32_t); }

  void multiply(const Call& call, const Parallel& parallel) const override {
    if (call.tokens == 0) return;
    const RoundedActivations rounded = round_activations(call, columns_, values_, parallel);
    const int64_t slices = static_cast<int64_t>(slice_offsets_.size()) - 1;
    const int64_t per_task = std::max<int64_t>(1, kStepsPerTask * slices / (slice_offsets_.back() + 1));
    parallel(static_cast<size_t>((slices + per_task - 1) / per_task), [&](size_t task) {
      const int64_t first = static_cast<int64_t>(task) * per_task;
      for (int64_t slice = first; slice < std::min(slices, first + per_task); ++slice) {
        for (int64_t m = 0; m < call.tokens; m += kTokensPerPass) multiply_tokens(call, rounded, slice, m);
      }
    });
  }

 private:
  void multiply_tokens(const Call& call, const RoundedActivations& rounded, int64_t slice, int64_t first) const {
    const SellView view{columns_, 0, bfloat16_, slice_offsets_.data(), places_.as<uint16_t>(), packed_.as()};
    const int64_t count = std::min(kTokensPerPass, call.tokens - first);
    alignas(64) float sums[kTokensPerPass * kSliceRows];
    avx512::multiply_slice(view, slice, rounded.x_MK + first * columns_, count, sums);
    for (int64_t m = 0; m < count; ++m) {
      const float token_scale = rounded.scales_M == nullptr ? 1 : rounded.scales_M[first + m];
      for (int64_t r = 0; r < std::min(kSliceRows, rows_ - slice * kSliceRows); ++r) {
        const int64_t n = order_[slice * kSliceRows + r];
        float sum = sums[m * kSliceRows + r];
        if (!row_scales_N_.empty()) sum *= row_scales_N_[n] * token_scale;
        call.y_MN[(first + m) * rows_ + n] = call.bias_N == nullptr ? sum : sum + call.bias_N[n];
      }
    }
  }

  // Sorted by length, so that the rows of a slice need little padding.
  void sort_rows(const SparseMatrix& matrix) {
    order_.resize(static_cast<size_t>(rows_));
    std::iota(order_.begin(), order_.end(), 0);
    const auto length = [&](int32_t n) { return matrix.row_offsets[n + 1] - matrix.row_offsets[n]; };
    std::stable_sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) { return length(a) > length(b); });
    slice_offsets_.push_back(0);
    for (int64_t first = 0; first < rows_; first += kSliceRows) {
      slice_offsets_.push_back(slice_offsets_.back() + length(order_[first]));
    }
  }

  // Padding is a link of weight 0 to column 0.
  void fill(const SparseMatrix& matrix) {
    const auto cells = static_cast<size_t>(slice_offsets_.back() * kSliceRows);
    places_ = Buffer::lasting(cells * sizeof(uint16_t));
    packed_ = Buffer::lasting(cells * (bfloat16_ ? 2 : 4));
    for (int64_t i = 0; i < rows_; ++i) {
      const int64_t n = order_[i];
      int64_t cell = slice_offsets_[i / kSliceRows] * kSliceRows + i % kSliceRows;
      for (int64_t z = matrix.row_offsets[n]; z < matrix.row_offsets[n + 1]; ++z, cell += kSliceRows) {
        places_.as<uint16_t>()[cell] = static_cast<uint16_t>(matrix.columns_Z[z]);
        const float value = matrix.float_weight(n, z);
        if (bfloat16_) packed_.as<uint16_t>()[cell] = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
        if (!bfloat16_) packed_.as<float>()[cell] = value;
      }
    }
  }

  ValueType values_;
  bool bfloat16_;
  int64_t rows_, columns_;
  std::vector<int32_t> order_;
  std::vector<int64_t> slice_offsets_;
  std::vector<float> row_scales_N_;
  Buffer places_, packed_;
};

}  // namespace

std::unique_ptr<Packing> pack_sell(const SparseMatrix& matrix) { return std::make_unique<SellPacking>(matrix); }

}  // namespace hebbline
