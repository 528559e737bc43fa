// The op `ResidualNorm`: the residual stream's sum and its RMS norm.
//
// Inputs: hidden and update [..., E], float32; scale [E], float32, a constant. Outputs: normed and sum, of hidden's
// shape: sum = hidden + update, normed = sum / sqrt(mean(sum^2) + epsilon) * scale. Attribute: epsilon.

#include <algorithm>

#include "norm/norm.h"
#include "ort/op.h"

namespace hebbline {
namespace {

using ort::KernelContext;
using ort::KernelInfo;
using ort::TensorView;

constexpr int64_t kTokensPerTask = 16;
constexpr int64_t kSerialFloats = 1 << 15;  // what takes less time than it takes to wake a thread

class ResidualNorm {
 public:
  explicit ResidualNorm(const KernelInfo& info) : node_(info.node_name()) {
    const auto scale = info.constant_input(2);
    if (!scale || scale->shape.size() != 1) refuse("scale is not a constant [hidden size]");
    scale_E_ = static_cast<const float*>(scale->data);
    hidden_ = scale->shape[0];
    const auto epsilon = info.real("epsilon");
    if (!epsilon || !(*epsilon >= 0)) refuse("attribute epsilon is missing or below 0");
    epsilon_ = *epsilon;
  }

  void compute(KernelContext& context) const {
    const TensorView hidden = *context.input(0), update = *context.input(1);
    if (hidden.shape.empty() || hidden.shape.back() != hidden_) {
      refuse("the last dimension of hidden is not " + std::to_string(hidden_));
    }
    if (update.shape != hidden.shape) refuse("update has not the shape of hidden");
    float* normed = context.float_output(0, hidden.shape);
    float* sum = context.float_output(1, hidden.shape);
    if (hidden_ == 0) return;
    const int64_t tokens = static_cast<int64_t>(hidden.size()) / hidden_;
    const auto tasks = static_cast<size_t>((tokens + kTokensPerTask - 1) / kTokensPerTask);
    const auto run = [&](size_t task) {
      const int64_t first = static_cast<int64_t>(task) * kTokensPerTask;
      for (int64_t t = first; t < std::min(tokens, first + kTokensPerTask); ++t) {
        const int64_t place = t * hidden_;
        kernels_.norm(static_cast<const float*>(hidden.data) + place, static_cast<const float*>(update.data) + place,
                      scale_E_, hidden_, epsilon_, sum + place, normed + place);
      }
    };
    if (tokens * hidden_ >= kSerialFloats) return context.parallel_for(tasks, run);
    for (size_t task = 0; task < tasks; ++task) run(task);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const { throw ort::Error("node '" + node_ + "': " + what); }

  std::string node_;
  const float* scale_E_ = nullptr;
  int64_t hidden_ = 0;
  float epsilon_ = 0;
  const NormKernels& kernels_ = norm_kernels(select_isa());
};

constexpr ort::InputSpec kFloats{ort::ElementType::kFloat};
const ort::Op<ResidualNorm> residual_norm("ResidualNorm", {kFloats, kFloats, kFloats},
                                          {ort::ElementType::kFloat, ort::ElementType::kFloat});

}  // namespace
}  // namespace hebbline
