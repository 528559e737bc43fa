// Runs the kernels of attention, of the head and of norms on steps of every kind, without ONNX Runtime: for the
// sanitizers. Every tensor lies on the heap at its exact size. Prints what it ran; exits with 1 where a result is
// wrong. tests/kernels/test_attention_sanitized.py builds and runs it; that results are exact is what
// test_attention.py, test_head.py and test_norm.py are about.

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "attention/attention.h"
#include "head/head.h"
#include "norm/norm.h"

namespace {

using hebbline::AttentionStep;
using hebbline::CacheFormat;
using hebbline::CacheShape;

std::mt19937 generator(11);

int below(int bound) { return static_cast<int>(generator() % static_cast<unsigned>(bound)); }

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

// A cache of three slots, full of NaN where nothing was written.
class Sequences {
 public:
  // `window`, `softcap`, `rotary_dim`: as in AttentionStep.
  Sequences(CacheFormat format, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t context, int64_t window,
            float softcap, int64_t rotary_dim)
      : heads_(heads),
        window_(window),
        rotary_dim_(rotary_dim),
        softcap_(softcap),
        shape_{format, 3, kv_heads, (context + 15) / 16, head_dim} {
    cache_.assign(shape_.head_offset(shape_.slots, 0), '\xFF');
    cos_ = reals(context * rotary_dim / 2);
    sin_ = reals(context * rotary_dim / 2);
  }

  // Appends `lengths[s]` random tokens to each slot; returns what was attended to.
  void append(const std::vector<int32_t>& lengths) {
    std::vector<int32_t> cu{0}, slots, past;
    for (size_t s = 0; s < lengths.size(); ++s) {
      cu.push_back(cu.back() + lengths[s]);
      slots.push_back(static_cast<int32_t>(s));
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
        slots,    past,   cos_.data(),    sin_.data(), cache_.data(), attended.data(),          rotary_dim_, window_,
        softcap_, scale};
    hebbline::attend(step, hebbline::attention_kernels(), serial);
    for (const float each : attended) {
      // A weighted mean of values, none of which is far from 0.
      if (!(std::fabs(each) < 10)) fail("attended " + std::to_string(each));
    }
  }

 private:
  int64_t heads_, window_, rotary_dim_;
  float softcap_;
  CacheShape shape_;
  std::vector<char> cache_;
  std::vector<float> cos_, sin_;
  std::vector<int32_t> held_ = {0, 0, 0};
};

void check_attention(CacheFormat format) {
  for (const auto& [heads, kv_heads, head_dim] :
       {std::array<int64_t, 3>{3, 1, 16}, {8, 2, 48}, {9, 3, 64}, {7, 1, 80}}) {
    for (const auto& [window, softcap, rotary_dim] :
         {std::tuple<int64_t, float, int64_t>{0, 0.0F, head_dim}, {1, 2.0F, 0}, {40, 0.0F, 6}, {290, 30.0F, 16}}) {
      Sequences sequences(format, heads, kv_heads, head_dim, 300, window, softcap, rotary_dim);
      sequences.append({270, 0, 33});
      sequences.append({1, 1, 1});
      sequences.append({29, 140, 2});  // the first is full
      sequences.append({0, 1, 130});
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
      for (size_t i = 0; i < exact.size(); ++i) {
        if (!(std::fabs(exact[i] - quick[i]) < 2)) fail("logits " + std::to_string(quick[i]));
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
    for (size_t e = 0; e < sum.size(); ++e) {
      // A root mean square of 1 leaves none above the root of their number.
      const float most = std::fabs(scale[e]) * std::sqrt(static_cast<float>(hidden)) * 1.001F;
      if (sum[e] != states[e] + update[e] || !(std::fabs(normed[e]) <= most)) fail("norm");
    }
  }
}

}  // namespace

int main() {
  for (const char* isa : {"scalar", "avx2", "avx512"}) {
    setenv("HEBBLINE_ISA", isa, 1);
    try {
      hebbline::attention_kernels();
    } catch (const std::exception& error) {
      std::printf("skipped: %s\n", error.what());
      continue;
    }
    for (const CacheFormat format : {CacheFormat::kFloat32, CacheFormat::kBfloat16, CacheFormat::kInt8}) {
      check_attention(format);
      std::printf("%s attention with blocks of %lld bytes\n", isa,
                  static_cast<long long>(hebbline::block_bytes(format, 64)));
    }
    check_head();
    check_norm();
    std::printf("%s head, norm\n", isa);
  }
  return 0;
}
