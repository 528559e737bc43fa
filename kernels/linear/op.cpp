// BitmaskLinear, CsrLinear and BlockLinear: from a node's tensors to a packed weight, and from X to Y.

#include <cmath>
#include <cstring>

#include "linear/packing.h"
#include "ops.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

using ort::ElementType;
using ort::KernelContext;
using ort::KernelInfo;
using ort::TensorView;

// Where a form has its inputs. X is input 0, `values` input 1.
struct Form {
  size_t bias, scales, activation_scale;
};

constexpr Form kBitmaskForm{3, 4, 5};
constexpr Form kOffsetsForm{4, 5, 6};

TensorView constant(const KernelInfo& info, const std::string& node, size_t index, const char* what) {
  auto tensor = info.constant_input(index);
  if (!tensor) throw ort::Error("node '" + node + "': " + what + " is not a constant input");
  return *std::move(tensor);
}

int64_t attribute(const KernelInfo& info, const std::string& node, const char* what) {
  const auto value = info.integer(what);
  if (!value) throw ort::Error("node '" + node + "': attribute " + what + " is missing");
  return *value;
}

// A kernel of the three forms; each decodes its own.
class Linear {
 public:
  void compute(KernelContext& context) const;

 protected:
  Linear(const KernelInfo& info, Form form) : form_(form) {
    const std::string given = info.node_name();
    node_ = given.empty() ? "(unnamed)" : given;
    tensors_.node = node_;
    tensors_.in_features = attribute(info, node_, "in_features");
    tensors_.group_size = info.integer("group_size").value_or(0);
    tensors_.values = constant(info, node_, 1, "values");
    scales_ = info.constant_input(form.scales);
    tensors_.scales = scales_ ? &*scales_ : nullptr;
  }

  void pack(const SparseMatrix& matrix) {
    rows_ = matrix.rows;
    columns_ = matrix.columns;
    quantised_ = matrix.quantised();
    packing_ = pack_csr(matrix, select_isa());
  }

  std::string node_;
  LinearTensors tensors_;

 private:
  [[noreturn]] void refuse(const std::string& what) const { throw ort::Error("node '" + node_ + "': " + what); }

  std::vector<int64_t> output_shape(const TensorView& x) const {
    if (x.shape.empty() || x.shape.back() != columns_) {
      refuse("the last dimension of X is not in_features, " + std::to_string(columns_));
    }
    std::vector<int64_t> shape = x.shape;
    shape.back() = rows_;
    return shape;
  }

  const float* bias(const std::optional<TensorView>& tensor) const {
    if (!tensor) return nullptr;
    if (tensor->shape != std::vector<int64_t>{rows_}) refuse("bias has not the shape [out_features]");
    return static_cast<const float*>(tensor->data);
  }

  std::optional<float> activation_scale(const KernelContext& context) const {
    const auto tensor = context.input(form_.activation_scale);
    if (!tensor) return std::nullopt;
    if (!quantised_) refuse("activation_scale is given, but values are not int8 or 4-bit");
    if (tensor->size() != 1) refuse("activation_scale is not a scalar");
    const float scale = *static_cast<const float*>(tensor->data);
    if (!(scale > 0) || !std::isfinite(scale)) refuse("activation_scale is not a positive number");
    return scale;
  }

  Form form_;
  std::optional<TensorView> scales_;
  std::unique_ptr<Packing> packing_;
  int64_t rows_ = 0, columns_ = 0;
  bool quantised_ = false;
};

void Linear::compute(KernelContext& context) const {
  const auto x = context.input(0);
  const auto shape = output_shape(*x);
  int64_t tokens = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) tokens *= shape[i];
  const auto bias_N = context.input(form_.bias);
  const Call call{static_cast<const float*>(x->data), tokens, bias(bias_N), activation_scale(context),
                  context.float_output(0, shape)};
  packing_->multiply(call, [&context](size_t count, const std::function<void(size_t)>& task) {
    if (count == 1) return task(0);
    context.parallel_for(count, task);
  });
}

class BitmaskLinear : public Linear {
 public:
  explicit BitmaskLinear(const KernelInfo& info) : Linear(info, kBitmaskForm) {
    const TensorView mask = constant(info, node_, 2, "mask");
    tensors_.mask = &mask;
    pack(decode_bitmask(tensors_));
  }
};

class CsrLinear : public Linear {
 public:
  explicit CsrLinear(const KernelInfo& info) : Linear(info, kOffsetsForm) {
    const TensorView offsets = constant(info, node_, 2, "row_offsets"), columns = constant(info, node_, 3, "columns");
    tensors_.row_offsets = &offsets;
    tensors_.columns = &columns;
    pack(decode_csr(tensors_));
  }
};

class BlockLinear : public Linear {
 public:
  explicit BlockLinear(const KernelInfo& info) : Linear(info, kOffsetsForm) {
    const TensorView offsets = constant(info, node_, 2, "row_offsets"), columns = constant(info, node_, 3, "columns");
    tensors_.out_features = attribute(info, node_, "out_features");
    tensors_.row_offsets = &offsets;
    tensors_.columns = &columns;
    pack(decode_block(tensors_));
  }
};

}  // namespace

std::vector<const ort::CustomOp*> linear_ops() {
  constexpr ElementType kAny = ElementType::kUndefined, kFloat = ElementType::kFloat;
  static const ort::Op<BitmaskLinear> bitmask(
      "BitmaskLinear", {{kFloat}, {kAny}, {ElementType::kUint8}, {kFloat, true}, {kFloat, true}, {kFloat, true}});
  const std::vector<ort::InputSpec> by_offsets{{kFloat},       {kAny},         {ElementType::kInt32}, {kAny},
                                               {kFloat, true}, {kFloat, true}, {kFloat, true}};
  static const ort::Op<CsrLinear> csr("CsrLinear", by_offsets);
  static const ort::Op<BlockLinear> block("BlockLinear", by_offsets);
  return {&bitmask, &csr, &block};
}

}  // namespace hebbline
