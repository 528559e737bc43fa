// The linear ops: from a node's tensors to a packed weight, and from X to Y.
//
// For each form (Bitmask, Csr, Block) there is an op of float32 or bfloat16 values, told apart by the type of `values`,
// one of int8 values and one of 4-bit values: see hebbline.export.layouts for why their names differ. Coded has the
// first one alone.

#include "linear/forms.h"
#include "linear/plan.h"
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

const FormOps<Linear, BitmaskForm> bitmask("BitmaskLinear", 1);
const FloatOp<Linear, CodedForm> coded("CodedLinear", 1);
const FormOps<Linear, CsrForm> csr("CsrLinear", 1);
const FormOps<Linear, BlockForm> block("BlockLinear", 1);

}  // namespace
}  // namespace hebbline
