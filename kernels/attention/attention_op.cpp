// The op `VarlenAttention`: a node's tensors, checked, to a step of attention.
//
// Inputs: queries [T, heads * D], keys and values [T, kv_heads * D], float32, or all three side by side as queries
// [T, (heads + 2 kv_heads) * D], without keys and values; cu_seqlens [S + 1], slots [S * E], past [S],
// int32: sequence s has tokens [cu_seqlens[s], cu_seqlens[s + 1]), which are appended after the past[s] tokens that it
// holds in its slots, slots[s * E] to slots[s * E + E - 1], one after the other; E is 1 where a slot is as long as the
// context. What is written no other sequence of the step may have; cos and sin [positions, D2], float32: the first 2 D2
// places of each head of queries and keys turn, all where D2 is D / 2, none where both are left out; cache, uint8
// [slots, kv_heads, blocks, bytes], where `bytes` of a block tells its format: see attention.h. Outputs: attended [T,
// heads * D]; the cache, which is written in place where it is bound to the input's memory and copied else. Attributes:
// num_heads, kv_num_heads; and where they are given, window: the keys that a token attends to, itself included;
// softcap: scores become softcap * tanh(score / softcap); scale: of scores, else D^-0.5.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "ort/op.h"

namespace hebbline {
namespace {

using ort::ElementType;
using ort::KernelContext;
using ort::KernelInfo;
using ort::TensorView;

enum Input : size_t { kQueries, kKeys, kValues, kCuSeqlens, kSlots, kPast, kCos, kSin, kCache };
constexpr const char* kInputNames[] = {"queries", "keys", "values", "cu_seqlens", "slots",
                                       "past",    "cos",  "sin",    "cache"};
constexpr int64_t kMostHeads = 1 << 16;
constexpr int64_t kMostHeadDim = 1 << 12;
constexpr int64_t kLargestWindow = std::numeric_limits<int32_t>::max();

class VarlenAttention {
 public:
  explicit VarlenAttention(const KernelInfo& info) : node_(info.node_name()) {
    heads_ = attribute(info, "num_heads");
    kv_heads_ = attribute(info, "kv_num_heads");
    if (heads_ % kv_heads_ != 0) refuse("num_heads is not a multiple of kv_num_heads");
    window_ = info.integer("window").value_or(0);
    if (window_ < 0 || window_ > kLargestWindow) refuse("window is out of range");
    softcap_ = info.real("softcap").value_or(0);
    scale_ = info.real("scale").value_or(0);
    for (const float value : {softcap_, scale_}) {
      if (!(value >= 0) || !std::isfinite(value)) refuse("softcap or scale is below 0 or not finite");
    }
  }

  void compute(KernelContext& context) const {
    std::vector<std::optional<TensorView>> given;
    for (size_t i = 0; i <= kCache; ++i) given.push_back(context.input(i));
    if (given[kKeys].has_value() != given[kValues].has_value()) refuse("only one of keys and values is given");
    if (given[kCos].has_value() != given[kSin].has_value()) refuse("only one of cos and sin is given");
    const bool packed = !given[kKeys], turns = given[kCos].has_value();
    std::vector<TensorView> inputs;
    for (auto& input : given) inputs.push_back(input ? *std::move(input) : TensorView{});
    AttentionStep step = read_sizes(inputs, packed, turns);
    check_sequences(step, inputs);
    const TensorView& cache = inputs[kCache];
    const std::vector<int64_t> attended_shape{inputs[kQueries].shape[0], heads_ * step.cache.head_dim};
    step.attended = context.float_output(0, attended_shape);
    step.blocks = static_cast<char*>(context.output(1, cache.shape));
    if (step.blocks != cache.data && cache.size() > 0) std::memcpy(step.blocks, cache.data, cache.size());
    if (step.cu_seqlens.back() == 0) return;
    attend(step, kernels_, [&context](size_t count, const std::function<void(size_t)>& task) {
      if (count == 1) return task(0);
      context.parallel_for(count, task);
    });
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const { throw ort::Error("node '" + node_ + "': " + what); }

  int64_t attribute(const KernelInfo& info, const char* name) const {
    const auto value = info.integer(name);
    if (!value || *value < 1 || *value > kMostHeads) refuse(std::string(name) + " is missing or out of range");
    return *value;
  }

  void check_shape(const TensorView& tensor, Input input, const std::vector<int64_t>& shape) const {
    if (tensor.shape == shape) return;
    const auto text = [](const std::vector<int64_t>& extents) {
      std::string result;
      for (const int64_t extent : extents) result += (result.empty() ? "" : ", ") + std::to_string(extent);
      return "[" + result + "]";
    };
    refuse(std::string(kInputNames[input]) + " has shape " + text(tensor.shape) + ", not " + text(shape));
  }

  AttentionStep read_sizes(const std::vector<TensorView>& inputs, bool packed, bool turns) const {
    const TensorView& cache = inputs[kCache];
    if (cache.shape.size() != 4 || cache.shape[1] != kv_heads_)
      refuse("cache is not [slots, kv_num_heads, blocks, bytes]");
    const TensorView& queries = inputs[kQueries];
    if (queries.shape.size() != 2) refuse("queries is not [tokens, heads * head size]");
    const int64_t width = queries.shape[1], heads = packed ? heads_ + 2 * kv_heads_ : heads_, head_dim = width / heads;
    if (width % heads != 0 || head_dim % kPlaces != 0 || head_dim < kPlaces || head_dim > kMostHeadDim) {
      refuse("the head size is not a multiple of 16 up to " + std::to_string(kMostHeadDim));
    }
    AttentionStep step{};
    if (turns) step.rotary_dim = read_rotary(inputs, head_dim);
    step.window = window_;
    step.softcap = softcap_;
    step.scale = scale_ > 0 ? scale_ : 1 / std::sqrt(static_cast<float>(head_dim));
    step.cache = {format_of(cache.shape[3], head_dim), cache.shape[0], kv_heads_, cache.shape[2], head_dim};
    step.heads = heads_;
    step.cos = static_cast<const float*>(inputs[kCos].data);
    step.sin = static_cast<const float*>(inputs[kSin].data);
    read_tokens(step, inputs, packed);
    return step;
  }

  // The places that turn, from the tables.
  int64_t read_rotary(const std::vector<TensorView>& inputs, int64_t head_dim) const {
    const TensorView &cos = inputs[kCos], &sin = inputs[kSin];
    if (cos.shape.size() != 2) refuse("cos is not [positions, pairs]");
    if (cos.shape[1] < 1 || cos.shape[1] > head_dim / 2) {
      refuse("cos has " + std::to_string(cos.shape[1]) + " pairs, which heads of size " + std::to_string(head_dim) +
             " do not have");
    }
    check_shape(sin, kSin, cos.shape);
    return 2 * cos.shape[1];
  }

  // Where queries, keys and values of the step's tokens lie.
  void read_tokens(AttentionStep& step, const std::vector<TensorView>& inputs, bool packed) const {
    const int64_t tokens = inputs[kQueries].shape[0], kv_width = kv_heads_ * step.cache.head_dim;
    step.queries = static_cast<const float*>(inputs[kQueries].data);
    step.query_stride = inputs[kQueries].shape[1];
    if (packed) {
      step.keys = step.queries + heads_ * step.cache.head_dim;
      step.values = step.keys + kv_width;
      step.kv_stride = step.query_stride;
      return;
    }
    check_shape(inputs[kKeys], kKeys, {tokens, kv_width});
    check_shape(inputs[kValues], kValues, {tokens, kv_width});
    step.keys = static_cast<const float*>(inputs[kKeys].data);
    step.values = static_cast<const float*>(inputs[kValues].data);
    step.kv_stride = kv_width;
  }

  CacheFormat format_of(int64_t bytes, int64_t head_dim) const {
    for (const CacheFormat format : {CacheFormat::kFloat32, CacheFormat::kBfloat16, CacheFormat::kInt8}) {
      if (block_bytes(format, head_dim) == bytes) return format;
    }
    refuse("cache has blocks of " + std::to_string(bytes) + " bytes, which no format has");
  }

  // Every index is checked at every step: an index from a file or a caller must not reach memory outside.
  void check_sequences(AttentionStep& step, const std::vector<TensorView>& inputs) const {
    const int64_t sequences = inputs[kPast].shape.size() == 1 ? inputs[kPast].shape[0] : 0;
    const int64_t slots = inputs[kSlots].shape.size() == 1 ? inputs[kSlots].shape[0] : 0;
    check_shape(inputs[kPast], kPast, {sequences});
    check_shape(inputs[kSlots], kSlots, {sequences > 0 ? sequences * std::max(slots / sequences, int64_t{1}) : 0});
    check_shape(inputs[kCuSeqlens], kCuSeqlens, {sequences + 1});
    step.cu_seqlens = inputs[kCuSeqlens].as<int32_t>();
    step.slots = inputs[kSlots].as<int32_t>();
    step.past = inputs[kPast].as<int32_t>();
    const int64_t tokens = inputs[kQueries].shape[0];
    const int64_t held = step.entries() * step.cache.capacity();
    const int64_t most = step.rotary_dim > 0 ? std::min(held, inputs[kCos].shape[0]) : held;
    if (step.cu_seqlens.front() != 0 || step.cu_seqlens.back() != tokens) {
      refuse("cu_seqlens does not go from 0 to the number of tokens, " + std::to_string(tokens));
    }
    std::vector<Use> uses(static_cast<size_t>(step.cache.slots), Use::kNone);
    for (int64_t s = 0; s < sequences; ++s) check_sequence(step, s, most, uses);
  }

  // What the sequences of a step do with a slot.
  enum class Use : uint8_t { kNone, kRead, kWritten };

  void check_sequence(const AttentionStep& step, int64_t s, int64_t most, std::vector<Use>& uses) const {
    const int64_t length = int64_t{step.cu_seqlens[s + 1]} - step.cu_seqlens[s], past = step.past[s];
    const std::string sequence = "sequence " + std::to_string(s) + " of the step: ";
    if (length < 0) refuse("cu_seqlens descends at " + sequence.substr(0, sequence.size() - 2));
    if (past < 0 || past + length > most) {
      refuse(sequence + std::to_string(length) + " tokens after " + std::to_string(past) + " exceed the " +
             std::to_string(most) + " that the cache and the rotary tables hold");
    }
    const int64_t capacity = step.cache.capacity(), first_written = past / capacity;
    for (int64_t entry = 0; entry * capacity < past + length; ++entry) {
      const int64_t slot = step.table(s)[entry];
      if (slot < 0 || slot >= step.cache.slots) {
        refuse(sequence + "slot " + std::to_string(slot) + " is not among " + std::to_string(step.cache.slots));
      }
      Use& use = uses[static_cast<size_t>(slot)];
      const bool writes = length > 0 && entry >= first_written;
      if (use == Use::kWritten || (writes && use != Use::kNone)) {
        refuse(sequence + "slot " + std::to_string(slot) + " is in use by another, and one of the two writes to it");
      }
      use = writes ? Use::kWritten : Use::kRead;
    }
  }

  std::string node_;
  int64_t heads_ = 0, kv_heads_ = 0, window_ = 0;
  float softcap_ = 0, scale_ = 0;
  const AttentionKernels& kernels_ = attention_kernels();
};

constexpr ort::InputSpec kFloats{ElementType::kFloat}, kOptional{ElementType::kFloat, true},
    kIntegers{ElementType::kInt32}, kBytes{ElementType::kUint8};
const ort::Op<VarlenAttention> varlen_attention("VarlenAttention",
                                                {kFloats, kOptional, kOptional, kIntegers, kIntegers, kIntegers,
                                                 kOptional, kOptional, kBytes},
                                                {ElementType::kFloat, ElementType::kUint8});

}  // namespace
}  // namespace hebbline
