#include "linear/gated.h"

#include <algorithm>

#include "linear/plan.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kTokensPerTask = 8;

float* floats(Scratch slot, int64_t count) {
  return reinterpret_cast<float*>(scratch(slot, static_cast<size_t>(count) * sizeof(float)));
}

// Whether the parts can be one matrix: 4-bit weights may have scales for groups of different widths.
bool can_join(const std::vector<StackPart>& parts) {
  return std::all_of(parts.begin(), parts.end(), [&first = parts.front()](const StackPart& part) {
    return part.matrix.values == first.matrix.values && part.matrix.columns == first.matrix.columns &&
           part.matrix.groups == first.matrix.groups && part.matrix.group_width == first.matrix.group_width &&
           part.activation_scale == first.activation_scale;
  });
}

template <class T>
void append(std::vector<T>& all, const std::vector<T>& more) {
  all.insert(all.end(), more.begin(), more.end());
}

SparseMatrix joined(std::vector<StackPart> parts) {
  SparseMatrix all = std::move(parts.front().matrix);
  for (size_t i = 1; i < parts.size(); ++i) {
    const SparseMatrix& next = parts[i].matrix;
    const int64_t links = all.links();
    all.rows += next.rows;
    append(all.columns_Z, next.columns_Z);
    append(all.weights_Z, next.weights_Z);
    append(all.scales_NG, next.scales_NG);
    for (int64_t n = 1; n <= next.rows; ++n) all.row_offsets.push_back(links + next.row_offsets[n]);
  }
  return all;
}

}  // namespace

Stack::Stack(std::vector<StackPart> parts, Isa isa, bool blocks, std::vector<float> bias_N)
    : bias_N_(std::move(bias_N)) {
  for (const StackPart& part : parts) links_ += part.matrix.links();
  if (can_join(parts)) {
    const auto scale = parts.front().activation_scale;
    const SparseMatrix all = joined(std::move(parts));
    rows_ = all.rows;
    packed_.push_back({pack(all, isa, blocks), scale, 0, rows_});
    return;
  }
  for (const StackPart& part : parts) {
    packed_.push_back({pack(part.matrix, isa, blocks), part.activation_scale, rows_, part.matrix.rows});
    rows_ += part.matrix.rows;
  }
}

void Stack::multiply(const float* x_MK, int64_t tokens, float* y_MN, const Parallel& parallel) const {
  for (const Packed& part : packed_) {
    const bool whole = part.rows == rows_;
    float* y = whole ? y_MN : floats(Scratch::kPart, tokens * part.rows);
    const float* bias = bias_N_.empty() ? nullptr : bias_N_.data() + part.first_row;
    part.packing->multiply({x_MK, tokens, bias, part.activation_scale, y}, parallel);
    if (whole) continue;
    for (int64_t m = 0; m < tokens; ++m) {
      std::copy_n(y + m * part.rows, part.rows, y_MN + m * rows_ + part.first_row);
    }
  }
}

const GateKernels& gate_kernels(Isa isa) { return HEBBLINE_CHOOSE(isa, kGateKernels); }

void multiply_gated(const Stack& stack, const GateKernels& kernels, Activation activation, const float* x_MK,
                    int64_t tokens, float* y_MF, const Parallel& parallel) {
  const int64_t rows = stack.rows(), features = rows / 2;
  float* products_MN = floats(Scratch::kStack, tokens * rows);
  stack.multiply(x_MK, tokens, products_MN, parallel);
  parallel(static_cast<size_t>((tokens + kTokensPerTask - 1) / kTokensPerTask), [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) * kTokensPerTask;
    for (int64_t m = first; m < std::min(tokens, first + kTokensPerTask); ++m) {
      const float* gate_F = products_MN + m * rows;
      kernels.gate(activation, gate_F, gate_F + features, features, y_MF + m * features);
    }
  });
}

}  // namespace hebbline
