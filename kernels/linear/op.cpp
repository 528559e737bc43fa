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

// Products that take less time than it takes to wake a thread.
constexpr int64_t kSerialWork = 30'000;

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
    const auto x = context.input(0);
    std::vector<int64_t> shape = x->shape;
    if (shape.empty() || shape.back() != columns_) {
      refuse("the last dimension of X is not in_features, " + std::to_string(columns_));
    }
    shape.back() = rows_;
    int64_t tokens = 1;
    for (size_t i = 0; i + 1 < shape.size(); ++i) tokens *= shape[i];
    const auto bias = context.input(kBias);
    if (bias && bias->shape != std::vector<int64_t>{rows_}) refuse("bias has not the shape [out_features]");
    const Call call{static_cast<const float*>(x->data), tokens, bias ? static_cast<const float*>(bias->data) : nullptr,
                    activation_scale_, context.float_output(0, shape)};
    const bool serial = work_ * tokens < kSerialWork;
    packing_->multiply(call, [&](size_t count, const std::function<void(size_t)>& task) {
      if (count > 1 && !serial) return context.parallel_for(count, task);
      for (size_t i = 0; i < count; ++i) task(i);
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
