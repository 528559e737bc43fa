// A node's tensors, form by form, to a sparse weight: what the ops of linear layers have in common.
#pragma once

#include <cmath>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "linear/matrix.h"
#include "ort/op.h"
#include "platform/memory.h"

namespace hebbline {

// What an op's name promises of its values.
enum class Values { kFloat, kInt8, kInt4 };

// Reads a node's constants; every failure names the node.
class NodeReader {
 public:
  // `skipped`: inputs between X and the weight that is read; `part` names that weight in messages, where it is one of
  // several.
  explicit NodeReader(const ort::KernelInfo& info, size_t skipped = 0, const std::string& part = "")
      : info_(info), skipped_(skipped), name_(info.node_name()) {
    if (name_.empty()) name_ = "(unnamed)";
    if (!part.empty()) name_ += "/" + part;
  }

  const std::string& name() const { return name_; }

  [[noreturn]] void refuse(const std::string& what) const { throw ort::Error("node '" + name_ + "': " + what); }

  // Input `index` of a node that has one weight.
  ort::TensorView constant(size_t index, const char* what) const {
    auto tensor = info_.constant_input(skipped_ + index);
    if (!tensor) refuse(std::string(what) + " is not a constant input");
    read_.push_back(*tensor);
    return *std::move(tensor);
  }

  // The packed copy is all that is needed from here on: what was read and maps a file need not stay in memory.
  void give_back() const {
    for (const ort::TensorView& tensor : read_)
      give_back_file_pages({static_cast<const char*>(tensor.data), tensor.bytes()});
  }

  int64_t integer(const char* what) const {
    const auto value = info_.integer(what);
    if (!value) refuse("attribute " + std::string(what) + " is missing");
    return *value;
  }

  // The fixed scale of X at that input; nothing where it is 0 and tokens have their own.
  std::optional<float> activation_scale(size_t index) const {
    const ort::TensorView tensor = constant(index, "activation_scale");
    if (tensor.size() != 1) refuse("activation_scale is not one number");
    const float scale = *static_cast<const float*>(tensor.data);
    if (scale == 0) return std::nullopt;
    if (!(scale > 0) || !std::isfinite(scale)) refuse("activation_scale is not a positive number");
    return scale;
  }

 private:
  const ort::KernelInfo& info_;
  size_t skipped_;
  std::string name_;
  mutable std::vector<ort::TensorView> read_;
};

// The tensors of a form, which decode() turns into a matrix: `values`, and what says where they belong.
struct BitmaskForm {
  static constexpr size_t kInputs = 2;
  static constexpr bool kBlocks = false;
  static std::vector<ort::InputSpec> inputs() { return {{ort::ElementType::kUndefined}, {ort::ElementType::kUint8}}; }
  static SparseMatrix decode(const NodeReader& node, LinearTensors tensors) {
    const ort::TensorView mask = node.constant(2, "mask");
    tensors.mask = &mask;
    return decode_bitmask(tensors);
  }
};

struct CodedForm {
  static constexpr size_t kInputs = 5;
  static constexpr bool kBlocks = false;
  static std::vector<ort::InputSpec> inputs() {
    return {{ort::ElementType::kUndefined},
            {ort::ElementType::kUint8},
            {ort::ElementType::kUint8},
            {ort::ElementType::kUndefined},
            {ort::ElementType::kUint8}};
  }
  static SparseMatrix decode(const NodeReader& node, LinearTensors tensors) {
    const ort::TensorView mask = node.constant(2, "mask"), codes = node.constant(3, "codes"),
                          powers = node.constant(4, "powers"), fractions = node.constant(5, "fractions");
    tensors.mask = &mask;
    tensors.codes = &codes;
    tensors.powers = &powers;
    tensors.fractions = &fractions;
    return decode_coded(tensors);
  }
};

struct CsrForm {
  static constexpr size_t kInputs = 3;
  static constexpr bool kBlocks = false;
  static std::vector<ort::InputSpec> inputs() {
    return {{ort::ElementType::kUndefined}, {ort::ElementType::kInt32}, {ort::ElementType::kUndefined}};
  }
  static SparseMatrix decode(const NodeReader& node, LinearTensors tensors) {
    const ort::TensorView offsets = node.constant(2, "row_offsets"), columns = node.constant(3, "columns");
    tensors.row_offsets = &offsets;
    tensors.columns = &columns;
    return decode_csr(tensors);
  }
};

struct BlockForm {
  static constexpr size_t kInputs = 4;
  static constexpr bool kBlocks = true;
  static std::vector<ort::InputSpec> inputs() {
    return {{ort::ElementType::kUndefined},
            {ort::ElementType::kInt32},
            {ort::ElementType::kUndefined},
            {ort::ElementType::kInt64}};
  }
  static SparseMatrix decode(const NodeReader& node, LinearTensors tensors) {
    const ort::TensorView offsets = node.constant(2, "row_offsets"), columns = node.constant(3, "columns"),
                          out_features = node.constant(4, "out_features");
    tensors.row_offsets = &offsets;
    tensors.columns = &columns;
    tensors.out_features = &out_features;
    return decode_block(tensors);
  }
};

inline void check_values(const NodeReader& node, Values values, ort::ElementType type) {
  using ort::ElementType;
  const bool floats = type == ElementType::kFloat || type == ElementType::kFloat16 || type == ElementType::kBfloat16;
  const bool fits = values == Values::kInt8   ? type == ElementType::kInt8
                    : values == Values::kInt4 ? type == ElementType::kUint8
                                              : floats;
  if (!fits) node.refuse("values are " + name(type) + ", which is not of this op");
}

// The inputs that a weight takes: the form's tensors, and scales and activation_scale where values are quantised.
template <class Form, Values kValues>
inline constexpr size_t kTensors = Form::kInputs + (kValues == Values::kFloat ? 0 : 2);

// The weight that a node holds; throws ort::Error where its tensors are unsound.
template <class Form, Values kValues>
SparseMatrix decode_node(const NodeReader& node) {
  LinearTensors tensors;
  tensors.node = node.name();
  tensors.in_features = node.integer("in_features");
  tensors.values = node.constant(1, "values");
  check_values(node, kValues, tensors.values.type);
  if constexpr (kValues == Values::kFloat) return Form::decode(node, tensors);
  const ort::TensorView scales = node.constant(1 + Form::kInputs, "scales");
  tensors.scales = &scales;
  return Form::decode(node, tensors);
}

// Products that take less time than it takes to wake a thread.
inline constexpr int64_t kSerialWork = 30'000;

// Calls run(x, tokens, y, parallel) for X [..., columns], the first input, and Y [..., features]; `links`: of all
// weights, which decide whether threads pay.
template <class Run>
void compute_product(ort::KernelContext& context, const std::string& node, int64_t columns, int64_t features,
                     int64_t links, const Run& run) {
  const auto x = context.input(0);
  std::vector<int64_t> shape = x->shape;
  if (shape.empty() || shape.back() != columns) {
    throw ort::Error("node '" + node + "': the last dimension of X is not in_features, " + std::to_string(columns));
  }
  shape.back() = features;
  int64_t tokens = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) tokens *= shape[i];
  const bool serial = links * tokens < kSerialWork;
  run(static_cast<const float*>(x->data), tokens, context.float_output(0, shape),
      [&](size_t count, const std::function<void(size_t)>& task) {
        if (count > 1 && !serial) return context.parallel_for(count, task);
        for (size_t i = 0; i < count; ++i) task(i);
      });
}

// The inputs of an op with `weights` weights of a form: X, each weight's tensors, and an optional bias for each.
template <class Form>
std::vector<ort::InputSpec> weight_inputs(size_t weights, bool scaled) {
  std::vector<ort::InputSpec> inputs{{ort::ElementType::kFloat}};
  for (size_t i = 0; i < weights; ++i) {
    for (const ort::InputSpec& tensor : Form::inputs()) inputs.push_back(tensor);
    if (scaled) inputs.insert(inputs.end(), 2, {ort::ElementType::kFloat});
  }
  inputs.insert(inputs.end(), weights, {ort::ElementType::kFloat, true});
  return inputs;
}

// The op of a form of floats, of kernels that multiply by `weights` weights.
template <template <class, Values> class Kernel, class Form>
struct FloatOp {
  FloatOp(const std::string& name, size_t weights) : floats(name, weight_inputs<Form>(weights, false)) {}

  ort::Op<Kernel<Form, Values::kFloat>> floats;
};

// The ops of a form, one for each kind of values.
template <template <class, Values> class Kernel, class Form>
struct FormOps : FloatOp<Kernel, Form> {
  FormOps(const std::string& name, size_t weights)
      : FloatOp<Kernel, Form>(name, weights),
        int8(name + "Int8", weight_inputs<Form>(weights, true)),
        int4(name + "Int4", weight_inputs<Form>(weights, true)) {}

  ort::Op<Kernel<Form, Values::kInt8>> int8;
  ort::Op<Kernel<Form, Values::kInt4>> int4;
};

}  // namespace hebbline
