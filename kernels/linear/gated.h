// Several weights that multiply the same X, and the gate of an MLP over two of them.
//
// Legend: N rows of all weights together, F rows of gate and of up, M tokens.
#pragma once

#include <memory>
#include <vector>

#include "linear/packing.h"
#include "platform/variants.h"

namespace hebbline {

// A weight of a stack, and the fixed scale of X that comes with quantised values.
struct StackPart {
  SparseMatrix matrix;
  std::optional<float> activation_scale;
};

// Weights of the same columns as one: y_MN has the rows of the first, then those of the second, and so on. Where they
// can be, they are one packing: X is rounded and transposed once, and memory is read in one stream.
class Stack {
 public:
  // `parts`: at least one. `blocks`: their links are whole blocks. `bias_N`: for all rows, or empty.
  Stack(std::vector<StackPart> parts, Isa isa, bool blocks, std::vector<float> bias_N);

  int64_t rows() const { return rows_; }
  int64_t links() const { return links_; }

  // y_MN = x_MK W^T + bias_N.
  void multiply(const float* x_MK, int64_t tokens, float* y_MN, const Parallel& parallel) const;

 private:
  struct Packed {
    std::unique_ptr<Packing> packing;
    std::optional<float> activation_scale;
    int64_t first_row, rows;
  };

  std::vector<Packed> packed_;
  std::vector<float> bias_N_;
  int64_t rows_ = 0, links_ = 0;
};

// Of a gate: x / (1 + e^-x); x times the normal distribution function of x, and its approximation by tanh (arXiv
// 1606.08415); max(x, 0).
enum class Activation { kSilu, kGelu, kGeluTanh, kRelu };

// One instruction set's kernels.
struct GateKernels {
  // y = activation(gate) * up.
  void (*gate)(Activation activation, const float* gate_F, const float* up_F, int64_t count, float* y_F);
};

// Those of the instruction set.
const GateKernels& gate_kernels(Isa isa);

// y_MF = activation(x Wgate^T) * (x Wup^T), for a stack of Wgate and Wup of F rows each.
void multiply_gated(const Stack& stack, const GateKernels& kernels, Activation activation, const float* x_MK,
                    int64_t tokens, float* y_MF, const Parallel& parallel);

HEBBLINE_DECLARE(GateKernels, kGateKernels)

}  // namespace hebbline
