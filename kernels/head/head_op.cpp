// The op `ShortlistHead`: logits [R, V] from hidden states [R, E].
//
// Inputs: hidden [R, E], float32; int8 [V, E] and scales [V], float32: weight v, e is about int8[v, e] * scales[v];
// weight [V, E], float32: the exact one. All but hidden are constants. Attribute: shortlist, the logits of a row that
// are exact. See head.h for what becomes of the others.

#include <string>
#include <vector>

#include "head/head.h"
#include "ops.h"

namespace hebbline {
namespace {

using ort::ElementType;
using ort::KernelContext;
using ort::KernelInfo;
using ort::TensorView;

enum Input : size_t { kHidden, kInt8, kScales, kWeight };

class HeadOp {
 public:
  explicit HeadOp(const KernelInfo& info) : node_(info.node_name()), head_(read_weights(info), read_shortlist(info)) {}

  void compute(KernelContext& context) const {
    const TensorView hidden = *context.input(kHidden);
    if (hidden.shape.size() != 2 || hidden.shape[1] != hidden_) {
      refuse("hidden is not [rows, " + std::to_string(hidden_) + "]");
    }
    const int64_t rows = hidden.shape[0];
    float* logits = context.float_output(0, std::vector<int64_t>{rows, vocabulary_});
    head_.compute(static_cast<const float*>(hidden.data), rows, logits,
                  [&context](size_t count, const std::function<void(size_t)>& task) {
                    if (count == 1) return task(0);
                    context.parallel_for(count, task);
                  });
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const { throw ort::Error("node '" + node_ + "': " + what); }

  TensorView constant(const KernelInfo& info, Input input, const char* what) const {
    auto tensor = info.constant_input(input);
    if (!tensor) refuse(std::string(what) + " is not a constant input");
    return *std::move(tensor);
  }

  HeadWeights read_weights(const KernelInfo& info) {
    const TensorView int8 = constant(info, kInt8, "int8"), scales = constant(info, kScales, "scales");
    const TensorView weight = constant(info, kWeight, "weight");
    if (int8.shape.size() != 2) refuse("int8 is not [vocabulary, hidden]");
    vocabulary_ = int8.shape[0];
    hidden_ = int8.shape[1];
    // 127 * 127 * hidden, and the sums of tokens that are shifted by 128, must fit 32 bits.
    constexpr int64_t kMostHidden = 1 << 16, kMostVocabulary = int64_t{1} << 31;
    if (hidden_ < 1 || hidden_ > kMostHidden || vocabulary_ < 1 || vocabulary_ >= kMostVocabulary) {
      refuse("the shape of int8 is out of range");
    }
    if (scales.shape != std::vector<int64_t>{vocabulary_}) refuse("scales is not [vocabulary]");
    if (weight.shape != int8.shape) refuse("weight has not the shape of int8");
    return {vocabulary_, hidden_, static_cast<const int8_t*>(int8.data), static_cast<const float*>(scales.data),
            static_cast<const float*>(weight.data)};
  }

  int64_t read_shortlist(const KernelInfo& info) const {
    const auto shortlist = info.integer("shortlist");
    if (!shortlist || *shortlist < 1) refuse("attribute shortlist is missing or below 1");
    return *shortlist;
  }

  std::string node_;
  int64_t vocabulary_ = 0, hidden_ = 0;
  ShortlistHead head_;
};

}  // namespace

std::vector<const ort::CustomOp*> head_ops() {
  const ort::InputSpec floats{ElementType::kFloat}, int8{ElementType::kInt8};
  static const ort::Op<HeadOp> op("ShortlistHead", {floats, int8, floats, floats});
  return {&op};
}

}  // namespace hebbline
