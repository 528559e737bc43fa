#include "scores/scores.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>

#include "platform/tasks.h"

namespace hebbline {
namespace {

constexpr int64_t kTaskRows = 16;
// Measured on Zen 4: an addition by links costs as much as so many products by pairs.
constexpr double kPairsPerLink = 25;

// Whether links are the cheaper way: the share of pairs with a common neighbour, times the density.
bool prefers_links(const Side& side) {
  const double cells = static_cast<double>(side.rows()) * static_cast<double>(side.columns());
  const double density = static_cast<double>(side.links()) / std::max(cells, 1.0);
  const double related = 1 - std::pow(1 - density * density, static_cast<double>(side.columns()));
  return related * density * kPairsPerLink < 1;
}

// consume(first row, rows, sums) for blocks of S(A) A.
template <typename Consume>
void for_each_block(const SideScores& scores, const Side& side, int threads, const Consume& consume) {
  for_each_task((side.rows() + kTaskRows - 1) / kTaskRows, threads, [&](int64_t block) {
    const int64_t first = block * kTaskRows, last = std::min(side.rows(), first + kTaskRows);
    std::vector<float> sums(static_cast<size_t>(kTaskRows * padded(side.columns())));
    scores.rows(first, last, sums.data());
    consume(first, last - first, sums.data());
  });
}

std::unique_ptr<SideScores> make_scores(const Side& side, const Side& other, LinkScore kind, bool by_links) {
  if (by_links) return std::make_unique<LinkedScores>(side, other, kind);
  return std::make_unique<PairedScores>(side, other, kind);
}

}  // namespace

Side::Side(const uint8_t* mask, int64_t rows, int64_t columns, int64_t stride, int64_t step)
    : rows_(rows),
      columns_(columns),
      words_((columns + 511) / 512 * 8),
      bits_(static_cast<size_t>(rows * words_)),
      degree_R_(static_cast<size_t>(rows)) {
  // Along the mask's rows, whichever way they lie.
  const auto set = [&](int64_t r, int64_t c) {
    bits_[static_cast<size_t>(r * words_ + c / 64)] |= static_cast<uint64_t>(mask[r * stride + c * step]) << c % 64;
  };
  if (step == 1) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) set(r, c);
    }
  } else {
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = 0; r < rows; ++r) set(r, c);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    int64_t degree = 0;
    for (int64_t w = 0; w < words_; ++w) degree += std::popcount(bits(r)[w]);
    degree_R_[static_cast<size_t>(r)] = static_cast<float>(degree);
  }
}

int64_t Side::links() const {
  double total = 0;
  for (const float degree : degree_R_) total += degree;
  return static_cast<int64_t>(total);
}

bool link_scores(const uint8_t* mask_NK, int64_t outputs, int64_t inputs, LinkScore kind, Way way, int threads,
                 float* scores_NK) {
  Side side(mask_NK, outputs, inputs, inputs, 1);
  const bool by_links = way == Way::kCheaper ? prefers_links(side) : way == Way::kLinks;
  if (!by_links && !PairedScores::available()) return false;
  Side other(mask_NK, inputs, outputs, 1, inputs);
  std::unique_ptr<SideScores> of_outputs, of_inputs;
  for_each_task(2, threads, [&](int64_t task) {
    if (by_links) (task == 0 ? side : other).list_links();
    if (task == 0) {
      of_outputs = make_scores(side, other, kind, by_links);
    } else {
      of_inputs = make_scores(other, side, kind, by_links);
    }
  });
  for_each_block(*of_outputs, side, threads, [&](int64_t first, int64_t rows, const float* sums_BK) {
    for (int64_t b = 0; b < rows; ++b) {
      std::copy_n(sums_BK + b * padded(inputs), inputs, scores_NK + (first + b) * inputs);
    }
  });
  for_each_block(*of_inputs, other, threads, [&](int64_t first, int64_t rows, const float* sums_BN) {
    for (int64_t n = 0; n < outputs; ++n) {
      for (int64_t b = 0; b < rows; ++b) scores_NK[n * inputs + first + b] += sums_BN[b * padded(outputs) + n];
    }
  });
  return true;
}

void Side::list_links() {
  starts_R_.reserve(static_cast<size_t>(rows_ + 1));
  ends_.reserve(static_cast<size_t>(links()));
  starts_R_.push_back(0);
  for (int64_t r = 0; r < rows_; ++r) {
    for (int64_t w = 0; w < words_; ++w) {
      for (uint64_t word = bits(r)[w]; word != 0; word &= word - 1) {
        ends_.push_back(static_cast<int32_t>(64 * w + std::countr_zero(word)));
      }
    }
    starts_R_.push_back(ends_.size());
  }
}

void LinkedScores::rows(int64_t first, int64_t last, float* sums) const {
  std::vector<int32_t> common_R(static_cast<size_t>(side_.rows())), touched;
  for (int64_t r = first; r < last; ++r) row(r, common_R, touched, sums + (r - first) * padded(side_.columns()));
}

// `common_R` is all 0 before and after.
void LinkedScores::row(int64_t node, std::vector<int32_t>& common_R, std::vector<int32_t>& touched,
                       float* sums_C) const {
  touched.clear();
  for (const int32_t between : side_.ends(node)) {
    for (const int32_t near : other_.ends(between)) {
      if (common_R[static_cast<size_t>(near)]++ == 0) touched.push_back(near);
    }
  }
  for (const int32_t near : touched) {
    const float weight = similarity(kind_, common_R[static_cast<size_t>(near)], side_.degree(near));
    for (const int32_t end : side_.ends(near)) sums_C[end] += weight;
    common_R[static_cast<size_t>(near)] = 0;
  }
}

}  // namespace hebbline
