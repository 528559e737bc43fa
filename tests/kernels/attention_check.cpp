// Runs the kernels of attention, of the head and of norms on steps of every kind, without ONNX Runtime, on every
// instruction set of this processor: under the sanitizers, and under an emulator for another architecture. Every tensor
// lies on the heap at its exact size. Prints what it ran; exits with 1 where a result is far from float64's.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "attention/attention.h"
#include "head/head.h"
#include "norm/norm.h"
#include "sample/nucleus.h"

namespace {

using hebbline::AttentionStep;
using hebbline::CacheFormat;
using hebbline::CacheShape;

std::mt19937 generator(11);

std::vector<float> reals(int64_t count) {
  std::vector<float> result(static_cast<size_t>(count));
  for (float& each : result) each = std::normal_distribution<float>()(generator);
  return result;
}

void serial(size_t count, const std::function<void(size_t)>& task) {
  for (size_t i = 0; i < count; ++i) task(i);
}

void fail(const std::string& what) {
  std::printf("wrong: %s\n", what.c_str());
  std::exit(1);
}

// What a slot has been given, in float64: keys after rotary embedding [tokens, kv_heads, D], and values.
struct History {
  std::vector<double> keys, values;
};

// Pairs (d, d + R / 2) of a vector's first R places rotated by the tables' row `position`; the others stay.
std::vector<double> rotated(const float* in_D, const AttentionStep& step, int64_t position) {
  const float *cos = step.cos, *sin = step.sin;
  std::vector<double> out(in_D, in_D + step.cache.head_dim);
  const int64_t half = step.rotary_dim / 2;
  for (int64_t d = 0; d < half; ++d) {
    const double c = cos[position * half + d], s = sin[position * half + d];
    out[d] = in_D[d] * c - in_D[d + half] * s;
    out[d + half] = in_D[d + half] * c + in_D[d] * s;
  }
  return out;
}

// Three sequences in a cache that is full of NaN where nothing was written.
class Sequences {
 public:
  // `window`, `softcap`, `rotary_dim`: as in AttentionStep. `entries`: slots of a sequence, anywhere in the cache.
  Sequences(CacheFormat format, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t context, int64_t window,
            float softcap, int64_t rotary_dim, int64_t entries)
      : heads_(heads),
        window_(window),
        rotary_dim_(rotary_dim),
        softcap_(softcap),
        shape_{format, 3 * entries, kv_heads, ((context + 15) / 16 + entries - 1) / entries, head_dim},
        tables_(static_cast<size_t>(3 * entries)) {
    std::iota(tables_.begin(), tables_.end(), 0);
    std::shuffle(tables_.begin(), tables_.end(), generator);
    cache_.assign(shape_.head_offset(shape_.slots, 0), '\xFF');
    cos_ = reals(context * rotary_dim / 2);
    sin_ = reals(context * rotary_dim / 2);
  }

  // Appends `lengths[s]` random tokens to each slot, and checks what every fifth of them and the last have attended to:
  // five has no divisor in common with the sizes of blocks and vectors, so that every place in them comes up.
  void append(const std::vector<int32_t>& lengths) {
    std::vector<int32_t> cu{0}, past;
    for (size_t s = 0; s < lengths.size(); ++s) {
      cu.push_back(cu.back() + lengths[s]);
      past.push_back(held_[s]);
      held_[s] += lengths[s];
    }
    const int64_t tokens = cu.back(), width = shape_.kv_heads * shape_.head_dim;
    const auto queries = reals(tokens * heads_ * shape_.head_dim), keys = reals(tokens * width);
    const auto values = reals(tokens * width);
    std::vector<float> attended(queries.size(), NAN);
    const float scale = 1 / std::sqrt(static_cast<float>(shape_.head_dim));
    AttentionStep step{
        shape_,   heads_, queries.data(), keys.data(), values.data(), heads_ * shape_.head_dim, width,       cu,
        tables_,  past,   cos_.data(),    sin_.data(), cache_.data(), attended.data(),          rotary_dim_, window_,
        softcap_, scale};
    hebbline::attend(step, hebbline::attention_kernels(), serial);
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (int64_t t = cu[s]; t < cu[s + 1]; ++t) {
        const int64_t place = t - cu[s], position = past[s] + place;
        add_token(step, s, t, position);
        if (place % 5 == 0 || t + 1 == cu[s + 1]) check_token(step, s, t, position);
      }
    }
  }

 private:
  // A token joins its slot's history.
  void add_token(const AttentionStep& step, size_t slot, int64_t token, int64_t position) {
    const int64_t head_dim = shape_.head_dim, width = shape_.kv_heads * head_dim;
    History& history = histories_[slot];
    for (int64_t head = 0; head < shape_.kv_heads; ++head) {
      const float* key_D = step.keys + token * width + head * head_dim;
      const auto key = rotated(key_D, step, position);
      history.keys.insert(history.keys.end(), key.begin(), key.end());
    }
    history.values.insert(history.values.end(), step.values + token * width, step.values + (token + 1) * width);
  }

  // The last token of its slot's history is compared with the definition.
  void check_token(const AttentionStep& step, size_t slot, int64_t token, int64_t position) const {
    const int64_t head_dim = shape_.head_dim;
    const History& history = histories_[slot];
    for (int64_t head = 0; head < heads_; ++head) {
      const int64_t place = (token * heads_ + head) * head_dim;
      const auto query = rotated(step.queries + place, step, position);
      const auto expected = attended_to(history, query, head / (heads_ / shape_.kv_heads) * head_dim, position + 1);
      for (int64_t d = 0; d < head_dim; ++d) {
        const double off = std::fabs(step.attended[place + d] - expected[d]);
        if (!(off < tolerance())) fail("attended " + std::to_string(step.attended[place + d]));
      }
    }
  }

  std::vector<double> attended_to(const History& history, const std::vector<double>& query, int64_t offset,
                                  int64_t keys) const {
    const int64_t head_dim = shape_.head_dim, width = shape_.kv_heads * head_dim;
    std::vector<double> scores, sum(static_cast<size_t>(head_dim));
    const int64_t begin = window_ > 0 ? std::max<int64_t>(0, keys - window_) : 0;
    for (int64_t k = begin; k < keys; ++k) {
      double score = 0;
      for (int64_t d = 0; d < head_dim; ++d) score += query[d] * history.keys[k * width + offset + d];
      score /= std::sqrt(static_cast<double>(head_dim));
      scores.push_back(softcap_ > 0 ? softcap_ * std::tanh(score / softcap_) : score);
    }
    const double most = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (int64_t k = begin; k < keys; ++k) {
      const double weight = std::exp(scores[k - begin] - most);
      total += weight;
      for (int64_t d = 0; d < head_dim; ++d) sum[d] += weight * history.values[k * width + offset + d];
    }
    for (double& each : sum) each /= total;
    return sum;
  }

  // Keys and values are numbers of about 1, kept to 24, 8 or 7 bits.
  double tolerance() const {
    return shape_.format == CacheFormat::kFloat32 ? 1e-4 : shape_.format == CacheFormat::kBfloat16 ? 0.1 : 0.3;
  }

  int64_t heads_, window_, rotary_dim_;
  float softcap_;
  CacheShape shape_;
  std::vector<int32_t> tables_;
  std::vector<char> cache_;
  std::vector<float> cos_, sin_;
  std::vector<int32_t> held_ = {0, 0, 0};
  std::array<History, 3> histories_;
};

void check_attention(CacheFormat format) {
  for (const auto& [heads, kv_heads, head_dim] :
       {std::array<int64_t, 3>{3, 1, 16}, {8, 2, 48}, {9, 3, 64}, {7, 1, 80}}) {
    for (const auto& [window, softcap, rotary_dim] :
         {std::tuple<int64_t, float, int64_t>{0, 0.0F, head_dim}, {1, 2.0F, 0}, {40, 0.0F, 6}, {290, 30.0F, 16}}) {
      for (const int64_t entries : {1, 4, 19}) {  // a slot for all tokens, for five blocks, for one
        if (entries > 1 && heads != 9) continue;
        Sequences sequences(format, heads, kv_heads, head_dim, 300, window, softcap, rotary_dim, entries);
        sequences.append({270, 0, 33});
        sequences.append({1, 1, 1});
        sequences.append({29, 140, 2});  // the first is full
        sequences.append({0, 1, 130});
      }
    }
  }
}

void check_head() {
  for (const auto& [vocabulary, hidden] : {std::array<int64_t, 2>{1, 1}, {130, 33}, {1500, 80}}) {
    const auto weight = reals(vocabulary * hidden);
    std::vector<int8_t> int8(weight.size());
    for (size_t i = 0; i < int8.size(); ++i) int8[i] = static_cast<int8_t>(std::lround(weight[i] * 20));
    const std::vector<float> scales(static_cast<size_t>(vocabulary), 0.05F);
    const hebbline::ShortlistHead head({vocabulary, hidden, int8.data(), scales.data(), weight.data()}, 8);
    for (const int64_t rows : {0, 1, 3, 7, 13}) {
      const auto states = reals(rows * hidden);
      std::vector<float> exact(static_cast<size_t>(rows * vocabulary), NAN), quick = exact;
      hebbline::multiply_head(hebbline::head_kernels(), weight.data(), vocabulary, hidden, states.data(), rows,
                              exact.data(), serial);
      head.compute(states.data(), rows, quick.data(), serial);
      for (int64_t i = 0; i < rows * vocabulary; ++i) {
        const float *states_E = states.data() + i / vocabulary * hidden,
                    *weight_E = weight.data() + i % vocabulary * hidden;
        double expected = 0;
        for (int64_t e = 0; e < hidden; ++e) expected += double{states_E[e]} * weight_E[e];
        if (!(std::fabs(exact[i] - expected) < 1e-4)) fail("logit " + std::to_string(exact[i]));
        if (!(std::fabs(quick[i] - expected) < 2)) fail("quick logit " + std::to_string(quick[i]));
      }
    }
  }
}

void check_norm() {
  for (const int64_t hidden : {1, 17, 64, 100}) {
    const auto states = reals(hidden), update = reals(hidden), scale = reals(hidden);
    std::vector<float> sum(states.size(), NAN), normed = sum;
    hebbline::norm_kernels(hebbline::select_isa())
        .norm(states.data(), update.data(), scale.data(), hidden, 1e-5F, sum.data(), normed.data());
    double squares = 0;
    for (const float each : sum) squares += double{each} * each;
    const double root = std::sqrt(squares / static_cast<double>(hidden) + 1e-5);
    for (size_t e = 0; e < sum.size(); ++e) {
      const bool near = std::fabs(normed[e] - sum[e] / root * scale[e]) < 1e-5;
      if (sum[e] != states[e] + update[e] || !near) fail("norm");
    }
  }
}

void check_sample() {
  const auto& kernels = hebbline::sample_kernels(hebbline::select_isa());
  constexpr double kTemperature = 0.5;
  constexpr float kLow = -0.5F, kHigh = 1;
  for (const int64_t count : {1, 15, 16, 1024, 3001}) {
    const auto logits = reals(count);
    const float peak = *std::max_element(logits.begin(), logits.end());
    std::vector<double> weights(logits.size());
    std::vector<int64_t> ids(logits.size() / 2 + 1), between;
    const auto blocks = static_cast<size_t>((count + hebbline::kSumBlock - 1) / hebbline::kSumBlock);
    std::vector<double> sums(blocks), above(blocks), expected_sums(blocks), expected_above(blocks);
    kernels.weigh(logits.data(), count, peak, kTemperature, weights.data());
    kernels.add_up(logits.data(), count, peak, kTemperature, kHigh, sums.data(), above.data());
    for (size_t v = 0; v < logits.size(); ++v) {
      const double weight = std::exp((double{logits[v]} - peak) / kTemperature);
      if (std::fabs(weights[v] / weight - 1) > 1e-14) fail("weight");
      expected_sums[v / hebbline::kSumBlock] += weight;
      if (logits[v] >= kHigh) expected_above[v / hebbline::kSumBlock] += weight;
      if (logits[v] >= kLow && logits[v] <= kHigh) between.push_back(static_cast<int64_t>(v));
    }
    for (size_t b = 0; b < blocks; ++b) {
      const double most = 1e-13 * expected_sums[b];
      if (std::fabs(sums[b] - expected_sums[b]) > most) fail("sum of weights");
      if (std::fabs(above[b] - expected_above[b]) > most) fail("sum of the weights above an edge");
    }
    const auto capacity = static_cast<int64_t>(ids.size()), expected = static_cast<int64_t>(between.size());
    const int64_t found = kernels.find(logits.data(), count, kLow, kHigh, capacity, ids.data());
    if ((found > capacity) != (expected > capacity)) fail("number of tokens that were found");
    if (found <= capacity && (found != expected || !std::equal(between.begin(), between.end(), ids.begin()))) {
      fail("tokens that were found");
    }
  }
}

// The fewest of the likeliest tokens that have a share, against sorting: a flat row, and one that is steep.
void check_nucleus() {
  const auto& kernels = hebbline::sample_kernels(hebbline::select_isa());
  constexpr int64_t kCount = 9001;
  for (const float spread : {0.5F, 4.0F}) {
    auto logits = reals(kCount);
    for (float& logit : logits) logit *= spread;
    const float peak = *std::max_element(logits.begin(), logits.end());
    const hebbline::Nucleus found = hebbline::find_nucleus(kernels, {logits.data(), kCount, peak, 1.0}, 0.8);
    if (found.kind == hebbline::Nucleus::Kind::kNone) fail("nucleus that is not found");
    std::vector<bool> kept(logits.size());
    for (const int64_t id : found.ids_N) kept[static_cast<size_t>(id)] = true;
    if (found.kind == hebbline::Nucleus::Kind::kMany) {
      for (size_t v = 0; v < logits.size(); ++v) kept[v] = kept[v] || logits[v] > found.above;
    }
    double total = 0, share = 0, least = 1;
    for (size_t v = 0; v < logits.size(); ++v) {
      const double weight = std::exp(double{logits[v]} - peak);
      total += weight;
      if (!kept[v]) continue;
      share += weight;
      least = std::min(least, weight);
    }
    for (size_t v = 0; v < logits.size(); ++v) {
      if (!kept[v] && std::exp(double{logits[v]} - peak) > least) fail("nucleus without a likelier token");
    }
    if (share < 0.8 * total * (1 - 1e-12) || share - least >= 0.8 * total) fail("size of a nucleus");
  }
}

}  // namespace

int main() {
  for (const hebbline::Isa isa : hebbline::available_isas()) {
    const std::string known = hebbline::name(isa);
    setenv("HEBBLINE_ISA", known.c_str(), 1);
    for (const CacheFormat format : {CacheFormat::kFloat32, CacheFormat::kBfloat16, CacheFormat::kInt8}) {
      check_attention(format);
      std::printf("%s attention with blocks of %lld bytes\n", known.c_str(),
                  static_cast<long long>(hebbline::block_bytes(format, 64)));
    }
    check_head();
    check_norm();
    check_sample();
    check_nucleus();
    std::printf("%s head, norm, sample\n", known.c_str());
  }
  return 0;
}
