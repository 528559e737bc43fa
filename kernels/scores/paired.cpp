// Scores by all pairs of nodes of a side.

#include <algorithm>

#include "scores/scores.h"
#include "scores/subset_sums.h"

namespace hebbline {

#if defined(__x86_64__)

namespace {

constexpr int64_t kRows = avx512f::kBlockRows;

int64_t rounded_up(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

}  // namespace

bool PairedScores::available() { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx2"); }

PairedScores::PairedScores(const Side& side, const Side& other, LinkScore kind)
    : side_(side),
      kind_(kind),
      groups_((side.rows() + 3) / 4),
      padded_columns_(rounded_up(side.columns(), avx512f::kBlockColumns)),
      patterns_GC_(static_cast<size_t>(groups_ * padded_columns_)) {
  for (int64_t c = 0; c < side.columns(); ++c) {
    const uint64_t* bits = other.bits(c);
    for (int64_t g = 0; g < groups_; ++g) {
      patterns_GC_[static_cast<size_t>(g * padded_columns_ + c)] = bits[g / 16] >> g % 16 * 4 & 15;
    }
  }
}

void PairedScores::rows(int64_t first, int64_t last, float* sums, int64_t stride) const {
  const int64_t similar_stride = 4 * groups_;
  std::vector<float> similar_BR(static_cast<size_t>(kRows * similar_stride));
  std::vector<float> sums_BC(static_cast<size_t>(kRows * padded_columns_));
  for (int64_t r = first; r < last; r += kRows) {
    const int64_t rows = std::min(kRows, last - r);
    std::fill(sums_BC.begin(), sums_BC.end(), 0.0F);
    const uint64_t* own[kRows];
    for (int64_t b = 0; b < kRows; ++b) own[b] = side_.bits(r + std::min(b, rows - 1));
    avx512f::similarities(own, side_.bits(0), side_.degrees(), side_.rows(), side_.words(), kind_ == LinkScore::kCh3,
                          similar_BR.data(), similar_stride);
    avx512f::add_subset_sums(similar_BR.data(), similar_stride, groups_, patterns_GC_.data(), padded_columns_,
                             sums_BC.data(), padded_columns_);
    for (int64_t b = 0; b < rows; ++b) {
      std::copy_n(sums_BC.data() + b * padded_columns_, side_.columns(), sums + (r - first + b) * stride);
    }
  }
}

#else

bool PairedScores::available() { return false; }

PairedScores::PairedScores(const Side& side, const Side&, LinkScore kind)
    : side_(side), kind_(kind), groups_(0), padded_columns_(0) {}

void PairedScores::rows(int64_t, int64_t, float*, int64_t) const {}

#endif

}  // namespace hebbline
