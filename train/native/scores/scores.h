// Scores of absent links: CH2-L3n and CH3-L3n of a bipartite graph (arXiv 2501.19107; openreview iayEcORsGd).
//
// With common neighbours D = A A^T, degrees d and E[i, j] = max(d_j - D[i, j], 1), the similarity of two rows of A is
// S = (D + [D != 0]) / E for CH2 and [D != 0] / E for CH3, and the scores are S(A) A + (S(A^T) A^T)^T.
//
// Legend: N outputs, K inputs; R nodes of one side, C of the other; B rows of a block; G groups of 4 rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "platform/arithmetic.h"

namespace hebbline {

enum class LinkScore { kCh2, kCh3 };

// How scores are formed: by the links of related nodes, by all pairs of nodes, or in the cheaper of the two ways.
enum class Way { kCheaper, kLinks, kPairs };

// One side's nodes and their neighbours on the other side, as bits and as lists.
class Side {
 public:
  // `mask` holds bytes 0 and 1; node r's links are at r * stride, next ones `step` apart.
  Side(const uint8_t* mask, int64_t rows, int64_t columns, int64_t stride, int64_t step);

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t words() const { return words_; }  // of a row's bits, a multiple of 8
  const uint64_t* bits(int64_t row) const { return bits_.data() + row * words_; }
  const float* degrees() const { return degree_R_.data(); }
  float degree(int64_t row) const { return degree_R_[static_cast<size_t>(row)]; }
  int64_t links() const;

  // Makes the lists of `ends`.
  void list_links();
  // The columns that a row is linked to.
  std::span<const int32_t> ends(int64_t row) const {
    const auto r = static_cast<size_t>(row);
    return std::span(ends_).subspan(starts_R_[r], starts_R_[r + 1] - starts_R_[r]);
  }

 private:
  int64_t rows_, columns_, words_;
  std::vector<uint64_t> bits_;
  std::vector<float> degree_R_;
  std::vector<size_t> starts_R_;
  std::vector<int32_t> ends_;
};

// The similarity of two nodes with so many common neighbours, to a node of that degree.
inline float similarity(LinkScore kind, int64_t common, float degree) {
  const auto count = static_cast<float>(common);
  const float external = degree - count > 1 ? degree - count : 1;
  return common == 0 ? 0 : (kind == LinkScore::kCh2 ? count + 1 : 1) / external;
}

// What a row of sums takes: its columns and room for whole blocks.
constexpr int64_t padded(int64_t columns) { return round_up(columns, 64); }

// S(A) A of rows [first, last) of a side, added to sums [last - first, padded(C)], whose rows are four at a time. One
// is made for each side and used by several threads.
class SideScores {
 public:
  virtual ~SideScores() = default;
  virtual void rows(int64_t first, int64_t last, float* sums) const = 0;
};

// By links: cost grows with the links of the nodes that have a common neighbour.
class LinkedScores final : public SideScores {
 public:
  // `other` is the same graph from its other side; both outlive this, and have their links listed by the time of
  // `rows`.
  LinkedScores(const Side& side, const Side& other, LinkScore kind) : side_(side), other_(other), kind_(kind) {}
  void rows(int64_t first, int64_t last, float* sums) const override;

 private:
  void row(int64_t node, std::vector<int32_t>& common_R, std::vector<int32_t>& touched, float* sums_C) const;

  const Side &side_, &other_;
  LinkScore kind_;
};

// By all pairs: D by population counts, and S A by looking up, for groups of 4 rows of A, the sum of the entries of S
// whose bits are set: the 16 sums of a group are a register's lanes, and one permutation is 64 products. Needs
// AVX-512F.
class PairedScores final : public SideScores {
 public:
  PairedScores(const Side& side, const Side& other, LinkScore kind);
  void rows(int64_t first, int64_t last, float* sums) const override;

  // Whether this processor can, and HEBBLINE_ISA does not name an instruction set without AVX-512.
  static bool available();

 private:
  const Side& side_;
  LinkScore kind_;
  int64_t groups_;
  std::vector<uint8_t> patterns_GC_;
};

// The scores, float32 [N, K], of a mask of bytes 0 and 1, [N, K], on so many threads, whose number changes no bit of
// them. False, with nothing done, where only pairs would do and are not available.
bool link_scores(const uint8_t* mask_NK, int64_t outputs, int64_t inputs, LinkScore kind, Way way, int threads,
                 float* scores_NK);

}  // namespace hebbline
