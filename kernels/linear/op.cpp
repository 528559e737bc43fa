// The linear ops: from a node's tensors to a packed weight, and from X to Y.
//
// For each form (Bitmask, Csr, Block) there is an op of float32 or bfloat16 values, told apart by the type of `values`,
// one of int8 values and one of 4-bit values: see hebbline.export.layouts for why their names differ.

#include "linear/forms.h"
#include "linear/plan.h"
#include "ops.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

using ort::KernelContext;
using ort::KernelInfo;

template <class Form, Values kValues>
class Linear {
 public:
  static constexpr size_t kBias = 1 + kTensors<Form, kValues>;  // after X and the weight

  explicit Linear(const KernelInfo& info) {
    const NodeReader node(info);
    node_ = node.name();
    decode_and_pack(node);
    node.give_back();
    give_back_freed_memory();
  }

  void compute(KernelContext& context) const {
    const auto bias = context.input(kBias);
    if (bias && bias->shape != std::vector<int64_t>{rows_}) refuse("bias has not the shape [out_features]");
    const auto* bias_N = bias ? static_cast<const float*>(bias->data) : nullptr;
    compute_product(context, node_, columns_, rows_, work_,
                    [&](const float* x_MK, int64_t tokens, float* y_MN, const Parallel& parallel) {
                      packing_->multiply({x_MK, tokens, bias_N, activation_scale_, y_MN}, parallel);
                    });
  }

 private:
  void decode_and_pack(const NodeReader& node) {
    const SparseMatrix matrix = decode_node<Form, kValues>(node);
    rows_ = matrix.rows;
    columns_ = matrix.columns;
    work_ = matrix.links();
    if (matrix.quantised()) activation_scale_ = node.activation_scale(kBias - 1);
    packing_ = pack(matrix, select_isa(), Form::kBlocks);
  }

  [[noreturn]] void refuse(const std::string& what) const { throw ort::Error("node '" + node_ + "': " + what); }

  std::string node_;
  std::unique_ptr<Packing> packing_;
  int64_t rows_ = 0, columns_ = 0, work_ = 0;
  std::optional<float> activation_scale_;
};

// The ops of a form.
template <class Form>
void add_ops(const std::string& name, std::vector<const ort::CustomOp*>& ops) {
  const auto plain = weight_inputs<Form>(1, false), scaled = weight_inputs<Form>(1, true);
  static const ort::Op<Linear<Form, Values::kFloat>> floats(name, plain);
  static const ort::Op<Linear<Form, Values::kInt8>> int8(name + "Int8", scaled);
  static const ort::Op<Linear<Form, Values::kInt4>> int4(name + "Int4", scaled);
  ops.insert(ops.end(), {&floats, &int8, &int4});
}

}  // namespace

std::vector<const ort::CustomOp*> linear_ops() {
  std::vector<const ort::CustomOp*> ops;
  add_ops<BitmaskForm>("BitmaskLinear", ops);
  add_ops<CsrForm>("CsrLinear", ops);
  add_ops<BlockForm>("BlockLinear", ops);
  return ops;
}

}  // namespace hebbline
