// The ops `DenseHead` and `ShortlistHead`: logits [R, V] from hidden states [R, E].
//
// DenseHead: inputs hidden [R, E] and weight [V, E], float32, the latter a constant.
//
// ShortlistHead: inputs hidden [R, E], float32; int8 [V, E] and scales [V], float32: weight v, e is about int8[v, e] *
// scales[v]; weight [V, E], float32: the exact one. All but hidden are constants. Attribute: shortlist, the logits of a
// row that are exact. See head.h for what becomes of the others.

#include <string>
#include <vector>

#include "head/head.h"
#include "ort/op.h"

namespace hebbline {
namespace {

using ort::ElementType;
using ort::KernelContext;
using ort::KernelInfo;
using ort::TensorView;

enum Input : size_t { kHidden, kInt8, kScales, kWeight };

// What the two have in common: a node's name and sizes.
class HeadNode {
 public:
  explicit HeadNode(const KernelInfo& info) : node_(info.node_name()) {}

  [[noreturn]] void refuse(const std::string& what) const { throw ort::Error("node '" + node_ + "': " + what); }

  TensorView constant(const KernelInfo& info, size_t input, const char* what) const {
    auto tensor = info.constant_input(input);
    if (!tensor) refuse(std::string(what) + " is not a constant input");
    return *std::move(tensor);
  }

  // Takes the sizes [vocabulary, hidden] of a matrix.
  void read_sizes(const TensorView& matrix, const char* what) {
    if (matrix.shape.size() != 2) refuse(std::string(what) + " is not [vocabulary, hidden]");
    vocabulary = matrix.shape[0];
    hidden = matrix.shape[1];
    // 127 * 127 * hidden, and the sums of tokens that are shifted by 128, must fit 32 bits.
    constexpr int64_t kMostHidden = 1 << 16, kMostVocabulary = int64_t{1} << 31;
    if (hidden < 1 || hidden > kMostHidden || vocabulary < 1 || vocabulary >= kMostVocabulary) {
      refuse("the shape of " + std::string(what) + " is out of range");
    }
  }

  // Calls head(hidden_RE, rows, logits_RV, parallel) for a step's hidden states.
  template <class Head>
  void compute(KernelContext& context, const Head& head) const {
    const TensorView states = *context.input(kHidden);
    if (states.shape.size() != 2 || states.shape[1] != hidden) {
      refuse("hidden is not [rows, " + std::to_string(hidden) + "]");
    }
    const int64_t rows = states.shape[0];
    float* logits_RV = context.float_output(0, std::vector<int64_t>{rows, vocabulary});
    head(static_cast<const float*>(states.data), rows, logits_RV,
         [&context](size_t count, const std::function<void(size_t)>& task) {
           if (count == 1) return task(0);
           context.parallel_for(count, task);
         });
  }

  int64_t vocabulary = 0, hidden = 0;

 private:
  std::string node_;
};

class DenseHeadOp {
 public:
  explicit DenseHeadOp(const KernelInfo& info) : node_(info) {
    const TensorView weight = node_.constant(info, 1, "weight");
    node_.read_sizes(weight, "weight");
    weight_VE_ = static_cast<const float*>(weight.data);
  }

  void compute(KernelContext& context) const {
    node_.compute(context, [this](const float* hidden_RE, int64_t rows, float* logits_RV, const Parallel& parallel) {
      multiply_head(kernels_, weight_VE_, node_.vocabulary, node_.hidden, hidden_RE, rows, logits_RV, parallel);
    });
  }

 private:
  HeadNode node_;
  const float* weight_VE_ = nullptr;
  const HeadKernels& kernels_ = head_kernels();
};

class ShortlistHeadOp {
 public:
  explicit ShortlistHeadOp(const KernelInfo& info) : node_(info), head_(read_weights(info), read_shortlist(info)) {}

  void compute(KernelContext& context) const {
    node_.compute(context, [this](const float* hidden_RE, int64_t rows, float* logits_RV, const Parallel& parallel) {
      head_.compute(hidden_RE, rows, logits_RV, parallel);
    });
  }

 private:
  HeadWeights read_weights(const KernelInfo& info) {
    const TensorView int8 = node_.constant(info, kInt8, "int8"), scales = node_.constant(info, kScales, "scales");
    const TensorView weight = node_.constant(info, kWeight, "weight");
    node_.read_sizes(int8, "int8");
    if (scales.shape != std::vector<int64_t>{node_.vocabulary}) node_.refuse("scales is not [vocabulary]");
    if (weight.shape != int8.shape) node_.refuse("weight has not the shape of int8");
    return {node_.vocabulary, node_.hidden, static_cast<const int8_t*>(int8.data),
            static_cast<const float*>(scales.data), static_cast<const float*>(weight.data)};
  }

  int64_t read_shortlist(const KernelInfo& info) const {
    const auto shortlist = info.integer("shortlist");
    if (!shortlist || *shortlist < 1) node_.refuse("attribute shortlist is missing or below 1");
    return *shortlist;
  }

  HeadNode node_;
  ShortlistHead head_;
};

constexpr ort::InputSpec kFloats{ElementType::kFloat}, kBytes{ElementType::kInt8};
const ort::Op<DenseHeadOp> dense("DenseHead", {kFloats, kFloats});
const ort::Op<ShortlistHeadOp> shortlist("ShortlistHead", {kFloats, kBytes, kFloats, kFloats});

}  // namespace
}  // namespace hebbline
