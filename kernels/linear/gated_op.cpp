// Ops of several linear layers over the same X. For each form (Bitmask, Coded, Csr, Block) and value type, as in
// op.cpp:
//
// GatedLinear, the first half of a gated MLP: Y = activation(X Wgate^T + gate_bias) * (X Wup^T + up_bias). Inputs: X,
// the tensors of gate, those of up, and the two biases, which may be left out. Attribute: activation, "silu" where it
// is left out, or "gelu", "gelu_tanh", "relu".
//
// QkvLinear, the projections of queries, keys and values side by side: Y = [X Wq^T + q_bias, X Wk^T + k_bias,
// X Wv^T + v_bias]. Inputs: X, the tensors of each, and three biases, which may be left out.
//
// All but X are constants. Attribute: in_features.

#include <algorithm>
#include <array>

#include "linear/forms.h"
#include "linear/gated.h"

namespace hebbline {
namespace {

using ort::ElementType;
using ort::KernelContext;
using ort::KernelInfo;

constexpr std::array<const char*, 2> kGatedParts{"gate", "up"};
constexpr std::array<const char*, 3> kQkvParts{"q", "k", "v"};
constexpr const char* kActivationNames[] = {"silu", "gelu", "gelu_tanh", "relu"};  // in the order of Activation

// The weights of a node, read and packed.
template <class Form, Values kValues, size_t kParts>
class StackedNode {
 public:
  StackedNode(const KernelInfo& info, const std::array<const char*, kParts>& names)
      : node_(info.node_name()), stack_(read(info, names)) {
    give_back_freed_memory();
  }

  const Stack& stack() const { return stack_; }
  int64_t rows_of_first() const { return rows_[0]; }

  [[noreturn]] void refuse(const std::string& what) const { throw ort::Error("node '" + node_ + "': " + what); }

  void check_equal_rows() const {
    if (rows_[0] * static_cast<int64_t>(kParts) != stack_.rows()) refuse("the weights have not as many rows each");
  }

  // Calls run(x, tokens, y, parallel) with Y of `features` columns.
  template <class Run>
  void compute(KernelContext& context, int64_t features, const Run& run) const {
    compute_product(context, node_, columns_, features, stack_.links(), run);
  }

 private:
  Stack read(const KernelInfo& info, const std::array<const char*, kParts>& names) {
    std::vector<StackPart> parts;
    for (size_t i = 0; i < kParts; ++i) {
      const NodeReader node(info, i * kTensors<Form, kValues>, names[i]);
      parts.push_back({decode_node<Form, kValues>(node), std::nullopt});
      StackPart& part = parts.back();
      if (part.matrix.quantised()) part.activation_scale = node.activation_scale(kTensors<Form, kValues>);
      rows_[i] = part.matrix.rows;
      node.give_back();
    }
    columns_ = parts.front().matrix.columns;
    return Stack(std::move(parts), select_isa(), Form::kBlocks, read_biases(info, names));
  }

  // The biases of all rows; empty where no part has one.
  std::vector<float> read_biases(const KernelInfo& info, const std::array<const char*, kParts>& names) const {
    constexpr size_t kFirst = 1 + kParts * kTensors<Form, kValues>;
    std::vector<float> bias_N;
    int64_t row = 0, rows = 0;
    for (const int64_t part : rows_) rows += part;
    for (size_t i = 0; i < kParts; row += rows_[i++]) {
      const auto bias = info.constant_input(kFirst + i);
      if (!bias) continue;
      if (bias->shape != std::vector<int64_t>{rows_[i]}) {
        refuse(std::string(names[i]) + "_bias has not the shape [out_features]");
      }
      bias_N.resize(static_cast<size_t>(rows));
      std::ranges::copy(bias->template as<float>(), bias_N.begin() + row);
    }
    return bias_N;
  }

  std::string node_;
  std::array<int64_t, kParts> rows_{};
  int64_t columns_ = 0;
  Stack stack_;
};

template <class Form, Values kValues>
class GatedLinear {
 public:
  explicit GatedLinear(const KernelInfo& info) : node_(info, kGatedParts) {
    node_.check_equal_rows();
    const std::string name = info.text("activation").value_or("silu");
    const auto* found = std::ranges::find(kActivationNames, name);
    if (found == std::end(kActivationNames)) node_.refuse("activation '" + name + "' is not known");
    activation_ = static_cast<Activation>(found - std::begin(kActivationNames));
  }

  void compute(KernelContext& context) const {
    node_.compute(context, node_.rows_of_first(),
                  [this](const float* x_MK, int64_t tokens, float* y_MF, const Parallel& parallel) {
                    multiply_gated(node_.stack(), kernels_, activation_, x_MK, tokens, y_MF, parallel);
                  });
  }

 private:
  StackedNode<Form, kValues, kGatedParts.size()> node_;
  Activation activation_ = Activation::kSilu;
  const GateKernels& kernels_ = gate_kernels(select_isa());
};

template <class Form, Values kValues>
class QkvLinear {
 public:
  explicit QkvLinear(const KernelInfo& info) : node_(info, kQkvParts) {}

  void compute(KernelContext& context) const {
    node_.compute(context, node_.stack().rows(),
                  [this](const float* x_MK, int64_t tokens, float* y_MN, const Parallel& parallel) {
                    node_.stack().multiply(x_MK, tokens, y_MN, parallel);
                  });
  }

 private:
  StackedNode<Form, kValues, kQkvParts.size()> node_;
};

const FormOps<GatedLinear, BitmaskForm> bitmask_gated("BitmaskGatedLinear", kGatedParts.size());
const FloatOp<GatedLinear, CodedForm> coded_gated("CodedGatedLinear", kGatedParts.size());
const FormOps<GatedLinear, CsrForm> csr_gated("CsrGatedLinear", kGatedParts.size());
const FormOps<GatedLinear, BlockForm> block_gated("BlockGatedLinear", kGatedParts.size());
const FormOps<QkvLinear, BitmaskForm> bitmask_qkv("BitmaskQkvLinear", kQkvParts.size());
const FloatOp<QkvLinear, CodedForm> coded_qkv("CodedQkvLinear", kQkvParts.size());
const FormOps<QkvLinear, CsrForm> csr_qkv("CsrQkvLinear", kQkvParts.size());
const FormOps<QkvLinear, BlockForm> block_qkv("BlockQkvLinear", kQkvParts.size());

}  // namespace
}  // namespace hebbline
