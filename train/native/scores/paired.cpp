// Scores by all pairs of nodes of a side.

#include <algorithm>

#include "platform/cpu.h"
#include "scores/scores.h"
#include "scores/subset_sums.h"

namespace hebbline {

#if defined(__x86_64__)

namespace {

constexpr int64_t kRows = avx512f::kBlockRows;
static_assert(padded(1) == avx512f::kBlockColumns);

}  // namespace

bool PairedScores::available() {
  const std::optional<Isa> named = named_isa();
  return cpu_features().avx512f && (!named || uses_avx512(*named));
}

PairedScores::PairedScores(const Side& side, const Side& other, LinkScore kind)
    : side_(side),
      kind_(kind),
      groups_((side.rows() + 3) / 4),
      patterns_GC_(static_cast<size_t>(groups_ * padded(side.columns()))) {
  for (int64_t c = 0; c < side.columns(); ++c) {
    const uint64_t* bits = other.bits(c);
    for (int64_t g = 0; g < groups_; ++g) {
      patterns_GC_[static_cast<size_t>(g * padded(side.columns()) + c)] = bits[g / 16] >> g % 16 * 4 & 15;
    }
  }
}

void PairedScores::rows(int64_t first, int64_t last, float* sums) const {
  const int64_t similar_stride = 4 * groups_, columns = padded(side_.columns());
  std::vector<float> similar_BR(static_cast<size_t>(kRows * similar_stride));
  for (int64_t r = first; r < last; r += kRows) {
    const uint64_t* own[kRows];
    for (int64_t b = 0; b < kRows; ++b) own[b] = side_.bits(std::min(r + b, last - 1));
    avx512f::similarities(own, side_.bits(0), side_.degrees(), side_.rows(), side_.words(), kind_ == LinkScore::kCh3,
                          similar_BR.data(), similar_stride);
    avx512f::add_subset_sums(similar_BR.data(), similar_stride, groups_, patterns_GC_.data(), columns,
                             sums + (r - first) * columns, columns);
  }
}

#else

bool PairedScores::available() { return false; }

PairedScores::PairedScores(const Side& side, const Side&, LinkScore kind) : side_(side), kind_(kind), groups_(0) {}

void PairedScores::rows(int64_t, int64_t, float*) const {}

#endif

}  // namespace hebbline
