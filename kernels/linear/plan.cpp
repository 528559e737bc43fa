#include "linear/plan.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

#include "linear/cost.h"
#include "linear/pick_narrow.h"
#include "linear/quad.h"

namespace hebbline {
namespace {

constexpr std::array<int64_t, 3> kTypicalTokens{1, 8, 64};
constexpr double kCopyPenalty = 0.15;   // a second copy of the weight must save so much time somewhere
constexpr double kSmallestCost = 0.01;  // microseconds; layers of nothing cost something
constexpr int64_t kAlways = std::numeric_limits<int64_t>::max();

constexpr std::array<std::pair<Family, std::string_view>, 7> kNames{{{Family::kCsr, "csr"},
                                                                     {Family::kSell, "sell"},
                                                                     {Family::kTile, "tile"},
                                                                     {Family::kPanel, "panel"},
                                                                     {Family::kPick, "pick"},
                                                                     {Family::kQuad, "quad"},
                                                                     {Family::kDense, "dense"}}};

bool has_avx512(Isa isa) { return isa == Isa::kAvx512 || isa == Isa::kAmx; }

bool can_hold(Family family, const SparseMatrix& matrix, Isa isa) {
  constexpr int64_t kUint16Columns = 1 << 16;
  constexpr int64_t kPickColumns = kUint16Columns * 8;  // windows of float32, 8 columns apart
  switch (family) {
    case Family::kCsr:
    case Family::kDense:
      return true;
    case Family::kSell:
      return has_avx512(isa) && matrix.columns <= kUint16Columns;
    case Family::kTile:
      return has_avx512(isa) || (isa == Isa::kAmxEmulated && matrix.values != ValueType::kFloat32);
    case Family::kPanel:
      return has_avx512(isa);
    case Family::kPick:
      if (isa == Isa::kAvx2) return matrix.columns <= kUint16Columns && matrix.columns >= kBroadWindow / 4;
      return has_avx512(isa) && matrix.columns <= kPickColumns;
    case Family::kQuad:
      return isa == Isa::kAvx2 && matrix.quantised() && (matrix.groups == 1 || matrix.group_width <= kWidestQuadBlock);
  }
  return false;
}

Plan forced_plan(std::string_view wanted, const SparseMatrix& matrix, Isa isa) {
  for (const auto& [family, known] : kNames) {
    if (known != wanted) continue;
    if (can_hold(family, matrix, isa)) return {family, family, kAlways};
    throw std::runtime_error("HEBBLINE_FAMILY=" + std::string(wanted) + " cannot hold this layer with " + name(isa));
  }
  throw std::runtime_error("HEBBLINE_FAMILY=" + std::string(wanted) +
                           " is not one of csr, sell, tile, panel, pick, quad, dense");
}

std::unique_ptr<Packing> pack_family(Family family, const SparseMatrix& matrix, Isa isa) {
  switch (family) {
#if defined(__x86_64__)
    case Family::kSell:
      return pack_sell(matrix);
    case Family::kPick:
      return isa == Isa::kAvx2 ? pack_narrow_pick(matrix) : pack_pick(matrix);
    case Family::kQuad:
      return pack_quad(matrix);
#endif
    case Family::kDense:
      return pack_dense(matrix, isa);
    case Family::kTile:
      return pack_tile(matrix, isa);
    case Family::kPanel:
      return pack_panel(matrix, isa);
    default:  // kCsr; what needs AVX-512 is not planned without it
      break;
  }
  return pack_csr(matrix, isa);
}

// Vectors of 16 rows that hold a link.
double count_vectors(const SparseMatrix& matrix) {
  const int64_t width = matrix.values == ValueType::kFloat32 ? 1 : matrix.values == ValueType::kBfloat16 ? 2 : 4;
  // Rows of a block have the same links, so every sixteenth row stands for its strip.
  double vectors = 0;
  for (int64_t n = 0; n < matrix.rows; n += 16) {
    int64_t last = -1;
    for (int64_t z = matrix.row_offsets[n]; z < matrix.row_offsets[n + 1]; ++z) {
      vectors += matrix.columns_Z[z] / width != last ? 1 : 0;
      last = matrix.columns_Z[z] / width;
    }
  }
  return vectors;
}

Workload workload(const SparseMatrix& matrix, bool blocks) {
  return {matrix.values,
          static_cast<double>(matrix.rows),
          static_cast<double>(matrix.columns),
          static_cast<double>(matrix.links()),
          blocks ? count_vectors(matrix) : 0,
          static_cast<double>(matrix.groups)};
}

std::vector<Family> candidates(const SparseMatrix& matrix, Isa isa, bool blocks) {
  std::vector<Family> families;
  for (const auto& [family, known] : kNames) {
    if (can_hold(family, matrix, isa) && (family != Family::kPanel || blocks)) families.push_back(family);
  }
  return families;
}

// The plan whose time over the best time, summed over numbers of tokens, is least.
Plan cheapest_pair(const std::vector<Family>& families, const Workload& work, Isa isa) {
  const auto cost = [&](Family family, int64_t tokens) {
    return cost_microseconds(family, work, isa, static_cast<double>(tokens)) + kSmallestCost;
  };
  Plan best{};
  double least = std::numeric_limits<double>::infinity();
  for (const Family few : families) {
    for (const Family many : families) {
      double score = few == many ? 0 : kCopyPenalty;
      for (const int64_t tokens : kTypicalTokens) {
        double fastest = std::numeric_limits<double>::infinity();
        for (const Family family : families) fastest = std::min(fastest, cost(family, tokens));
        score += std::min(cost(few, tokens), cost(many, tokens)) / fastest;
      }
      if (score >= least || cost(few, 1) > cost(many, 1)) continue;
      least = score;
      int64_t from = 2;
      while (from < kTypicalTokens.back() && cost(few, from) <= cost(many, from)) ++from;
      best = {few, many, from};
    }
  }
  return best;
}

// Two packings of a weight, each for the number of tokens that it is best at.
class PackedPair : public Packing {
 public:
  PackedPair(std::unique_ptr<Packing> few, std::unique_ptr<Packing> many, int64_t many_from)
      : few_(std::move(few)), many_(std::move(many)), many_from_(many_from) {}

  void multiply(const Call& call, const Parallel& parallel) const override {
    (call.tokens < many_from_ ? *few_ : *many_).multiply(call, parallel);
  }

  size_t bytes() const override { return few_->bytes() + many_->bytes(); }

 private:
  std::unique_ptr<Packing> few_, many_;
  int64_t many_from_;
};

}  // namespace

Plan make_plan(const SparseMatrix& matrix, Isa isa, bool blocks) {
  if (const char* wanted = std::getenv("HEBBLINE_FAMILY"); wanted != nullptr && *wanted != '\0') {
    return forced_plan(wanted, matrix, isa);
  }
  if (isa == Isa::kAmxEmulated && can_hold(Family::kTile, matrix, isa)) return {Family::kTile, Family::kTile, kAlways};
  return cheapest_pair(candidates(matrix, isa, blocks), workload(matrix, blocks), isa);
}

std::unique_ptr<Packing> pack(const SparseMatrix& matrix, Isa isa, bool blocks) {
  const Plan plan = make_plan(matrix, isa, blocks);
  if (plan.few == plan.many) return pack_family(plan.few, matrix, isa);
  return std::make_unique<PackedPair>(pack_family(plan.few, matrix, isa), pack_family(plan.many, matrix, isa),
                                      plan.many_from);
}

}  // namespace hebbline
