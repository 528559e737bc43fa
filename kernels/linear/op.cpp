// The linear ops: from a node's tensors to a packed weight, and from X to Y.
//
// For each form (Bitmask, Csr, Block) there is an op of float32 or bfloat16 values, told apart by the type of `values`,
// one of int8 values and one of 4-bit values: see hebbline.export.layouts for why their names differ.

#include <cmath>
#include <cstring>

#include "linear/plan.h"
#include "ops.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

using ort::ElementType;
using ort::KernelContext;
using ort::KernelInfo;
using ort::TensorView;

// Products that take less time than it takes to wake a thread.
constexpr int64_t kSerialWork = 30'000;

// What an op's name promises of its values.
enum class Values { kFloat, kInt8, kInt4 };

// Reads a node's constants; every failure names the node.
class NodeReader {
 public:
  explicit NodeReader(const KernelInfo& info) : info_(info), name_(info.node_name()) {
    if (name_.empty()) name_ = "(unnamed)";
  }

  const std::string& name() const { return name_; }

  [[noreturn]] void refuse(const std::string& what) const { throw ort::Error("node '" + name_ + "': " + what); }

  TensorView constant(size_t index, const char* what) const {
    auto tensor = info_.constant_input(index);
    if (!tensor) refuse(std::string(what) + " is not a constant input");
    read_.push_back(*tensor);
    return *std::move(tensor);
  }

  // The packed copy is all that is needed from here on: what was read and maps a file need not stay in memory.
  void give_back() const {
    for (const TensorView& tensor : read_)
      give_back_file_pages({static_cast<const char*>(tensor.data), tensor.bytes()});
  }

  int64_t integer(const char* what) const {
    const auto value = info_.integer(what);
    if (!value) refuse("attribute " + std::string(what) + " is missing");
    return *value;
  }

  // The fixed scale of X at input `index`; nothing where it is 0 and tokens have their own.
  std::optional<float> activation_scale(size_t index) const {
    const TensorView tensor = constant(index, "activation_scale");
    if (tensor.size() != 1) refuse("activation_scale is not one number");
    const float scale = *static_cast<const float*>(tensor.data);
    if (scale == 0) return std::nullopt;
    if (!(scale > 0) || !std::isfinite(scale)) refuse("activation_scale is not a positive number");
    return scale;
  }

 private:
  const KernelInfo& info_;
  std::string name_;
  mutable std::vector<TensorView> read_;
};

// The tensors of a form, which decode() turns into a matrix. `count` inputs follow X.
struct BitmaskForm {
  static constexpr size_t kInputs = 2;
  static constexpr bool kBlocks = false;
  static SparseMatrix decode(const NodeReader& node, LinearTensors tensors) {
    const TensorView mask = node.constant(2, "mask");
    tensors.mask = &mask;
    return decode_bitmask(tensors);
  }
};

struct CsrForm {
  static constexpr size_t kInputs = 3;
  static constexpr bool kBlocks = false;
  static SparseMatrix decode(const NodeReader& node, LinearTensors tensors) {
    const TensorView offsets = node.constant(2, "row_offsets"), columns = node.constant(3, "columns");
    tensors.row_offsets = &offsets;
    tensors.columns = &columns;
    return decode_csr(tensors);
  }
};

struct BlockForm {
  static constexpr size_t kInputs = 4;
  static constexpr bool kBlocks = true;
  static SparseMatrix decode(const NodeReader& node, LinearTensors tensors) {
    const TensorView offsets = node.constant(2, "row_offsets"), columns = node.constant(3, "columns"),
                     out_features = node.constant(4, "out_features");
    tensors.row_offsets = &offsets;
    tensors.columns = &columns;
    tensors.out_features = &out_features;
    return decode_block(tensors);
  }
};

void check_values(const NodeReader& node, Values values, ElementType type) {
  const bool fits = values == Values::kInt8   ? type == ElementType::kInt8
                    : values == Values::kInt4 ? type == ElementType::kUint8
                                              : type == ElementType::kFloat || type == ElementType::kBfloat16;
  if (!fits) node.refuse("values are " + name(type) + ", which is not of this op");
}

template <class Form, Values kValues>
class Linear {
 public:
  // X, the form's tensors, scales and activation_scale where values are quantised, and bias.
  static constexpr size_t kScales = 1 + Form::kInputs;
  static constexpr size_t kBias = kScales + (kValues == Values::kFloat ? 0 : 2);

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
    const SparseMatrix matrix = decode(node);
    rows_ = matrix.rows;
    columns_ = matrix.columns;
    work_ = matrix.links();
    if (matrix.quantised()) activation_scale_ = node.activation_scale(kScales + 1);
    packing_ = pack(matrix, select_isa(), Form::kBlocks);
  }

  [[noreturn]] void refuse(const std::string& what) const { throw ort::Error("node '" + node_ + "': " + what); }

  static SparseMatrix decode(const NodeReader& node) {
    LinearTensors tensors;
    tensors.node = node.name();
    tensors.in_features = node.integer("in_features");
    tensors.values = node.constant(1, "values");
    check_values(node, kValues, tensors.values.type);
    if constexpr (kValues == Values::kFloat) return Form::decode(node, tensors);
    const TensorView scales = node.constant(kScales, "scales");
    tensors.scales = &scales;
    return Form::decode(node, tensors);
  }

  std::string node_;
  std::unique_ptr<Packing> packing_;
  int64_t rows_ = 0, columns_ = 0, work_ = 0;
  std::optional<float> activation_scale_;
};

// The ops of a form; `tensors` are the types of its inputs after `values`.
template <class Form>
void add_ops(const std::string& name, const std::vector<ort::InputSpec>& tensors,
             std::vector<const ort::CustomOp*>& ops) {
  std::vector<ort::InputSpec> plain{{ElementType::kFloat}, {ElementType::kUndefined}};
  plain.insert(plain.end(), tensors.begin(), tensors.end());
  std::vector<ort::InputSpec> scaled = plain;
  scaled.insert(scaled.end(), {{ElementType::kFloat}, {ElementType::kFloat}});
  for (auto* inputs : {&plain, &scaled}) inputs->push_back({ElementType::kFloat, true});
  static const ort::Op<Linear<Form, Values::kFloat>> floats(name, plain);
  static const ort::Op<Linear<Form, Values::kInt8>> int8(name + "Int8", scaled);
  static const ort::Op<Linear<Form, Values::kInt4>> int4(name + "Int4", scaled);
  ops.insert(ops.end(), {&floats, &int8, &int4});
}

}  // namespace

std::vector<const ort::CustomOp*> linear_ops() {
  const ort::InputSpec offsets{ElementType::kInt32}, columns{ElementType::kUndefined};
  std::vector<const ort::CustomOp*> ops;
  add_ops<BitmaskForm>("BitmaskLinear", {{ElementType::kUint8}}, ops);
  add_ops<CsrForm>("CsrLinear", {offsets, columns}, ops);
  add_ops<BlockForm>("BlockLinear", {offsets, columns, {ElementType::kInt64}}, ops);
  return ops;
}

}  // namespace hebbline
