#include "linear/dense.h"

#include <algorithm>
#include <vector>

#include "linear/activations.h"
#include "linear/packing.h"
#include "platform/arithmetic.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

class DensePacking : public Packing {
 public:
  DensePacking(const SparseMatrix& matrix, Isa isa)
      : kernels_(HEBBLINE_CHOOSE(isa, kDenseKernels)),
        values_(matrix.values),
        rows_(matrix.rows),
        columns_(matrix.columns),
        panels_(ceil_div(rows_, kernels_.panel_rows)),
        row_scales_N_(matrix.row_scales()) {
    cells_ = Buffer::lasting(static_cast<size_t>(panels_ * kernels_.panel_rows * columns_) * sizeof(float));
    for (int64_t n = 0; n < rows_; ++n) {
      for (int64_t z = matrix.row_offsets[n]; z < matrix.row_offsets[n + 1]; ++z) {
        cells_.as<float>()[place(n, matrix.columns_Z[z])] = matrix.float_weight(n, z);
      }
    }
  }

  size_t bytes() const override { return cells_.bytes(); }

  void multiply(const Call& call, const Parallel& parallel) const override {
    if (call.tokens == 0 || rows_ == 0) return;
    const RoundedActivations x = round_activations(call, columns_, values_, parallel);
    const int64_t tasks = ceil_div(rows_, kDenseRows), groups = ceil_div(call.tokens, kDenseTokens);
    parallel(static_cast<size_t>(tasks * groups), [&](size_t task) {
      multiply_panels(call, x, static_cast<int64_t>(task) % tasks * panels_of_task(),
                      static_cast<int64_t>(task) / tasks * kDenseTokens);
    });
  }

 private:
  int64_t panels_of_task() const { return kDenseRows / kernels_.panel_rows; }
  int64_t block_columns() const { return kDenseBlock / kernels_.panel_rows; }

  // Where a cell is: the order is that in which a task reads, of blocks and of the panels of a task within them.
  int64_t place(int64_t n, int64_t k) const {
    const int64_t panel = n / kernels_.panel_rows, first = panel / panels_of_task() * panels_of_task();
    const int64_t panels = std::min(panels_of_task(), panels_ - first), start = k / block_columns() * block_columns();
    const int64_t columns = std::min(block_columns(), columns_ - start);
    const int64_t cells = first * columns_ + panels * start + (panel - first) * columns + k - start;
    return cells * kernels_.panel_rows + n % kernels_.panel_rows;
  }

  // The panels of a task from `panel` on, times its tokens from `token` on.
  void multiply_panels(const Call& call, const RoundedActivations& x, int64_t panel, int64_t token) const {
    alignas(64) float sums[kDenseTokens * kDenseRows];
    const int64_t panels = std::min(panels_of_task(), panels_ - panel), width = panels * kernels_.panel_rows;
    const int64_t count = std::min(kDenseTokens, call.tokens - token);
    std::fill_n(sums, count * width, 0.0F);
    for (int64_t k = 0; k < columns_; k += block_columns()) {
      const float* weight = cells_.as<float>() + place(panel * kernels_.panel_rows, k);
      const int64_t columns = std::min(block_columns(), columns_ - k);
      kernels_.multiply(weight, panels, x.x_MK + token * columns_ + k, columns_, count, columns, sums);
    }
    const int64_t first_row = panel * kernels_.panel_rows;
    for (int64_t m = 0; m < count; ++m) {
      finish_token(call, x, token + m, first_row, std::min(width, rows_ - first_row), sums + m * width);
    }
  }

  void finish_token(const Call& call, const RoundedActivations& x, int64_t token, int64_t first_row, int64_t rows,
                    const float* sums) const {
    float* y_N = call.y_MN + token * rows_ + first_row;
    const float* bias = call.bias_N == nullptr ? nullptr : call.bias_N + first_row;
    const float* row_scales = row_scales_N_.empty() ? nullptr : row_scales_N_.data() + first_row;
    const float token_scale = x.scales_M == nullptr ? 1 : x.scales_M[token];
    for (int64_t r = 0; r < rows; ++r) {
      const float sum = row_scales == nullptr ? sums[r] : sums[r] * (row_scales[r] * token_scale);
      y_N[r] = bias == nullptr ? sum : sum + bias[r];
    }
  }

  const DenseKernels& kernels_;
  ValueType values_;
  int64_t rows_, columns_, panels_;
  std::vector<float> row_scales_N_;
  Buffer cells_;
};

}  // namespace

std::unique_ptr<Packing> pack_dense(const SparseMatrix& matrix, Isa isa) {
  return std::make_unique<DensePacking>(matrix, isa);
}

}  // namespace hebbline
