#include "linear/plan.h"

#include <array>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "linear/cost.h"

namespace hebbline {
namespace {

constexpr int64_t kFewTokens = 1, kManyTokens = 64;
constexpr double kWorthACopy = 1.2;
constexpr int64_t kAlways = std::numeric_limits<int64_t>::max();

constexpr std::array<std::pair<Family, std::string_view>, 6> kNames{{{Family::kRows, "rows"},
                                                                     {Family::kCsr, "csr"},
                                                                     {Family::kSell, "sell"},
                                                                     {Family::kTile, "tile"},
                                                                     {Family::kPanel, "panel"},
                                                                     {Family::kQuad, "quad"}}};

bool has_avx512(Isa isa) { return isa == Isa::kAvx512 || isa == Isa::kAmx; }

bool can_hold(Family family, const SparseMatrix& matrix, Isa isa) {
  constexpr int64_t kUint16Columns = 1 << 16;
  switch (family) {
    case Family::kRows:
    case Family::kCsr:
      return true;
    case Family::kSell:
      return has_avx512(isa) && matrix.columns <= kUint16Columns;
    case Family::kTile:
      return has_avx512(isa) || (isa == Isa::kAmxEmulated && matrix.values != ValueType::kFloat32);
    case Family::kPanel:
      return has_avx512(isa);
    case Family::kQuad:
      return has_avx512(isa) && matrix.quantised() && matrix.groups == 1;
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
                           " is not one of rows, csr, sell, tile, panel, quad");
}

std::unique_ptr<Packing> pack_family(Family family, const SparseMatrix& matrix, Isa isa) {
  switch (family) {
    case Family::kSell:
      return pack_sell(matrix);
    case Family::kTile:
      return pack_tile(matrix, isa);
    case Family::kPanel:
      return pack_panel(matrix, isa);
    case Family::kQuad:
      return pack_quad(matrix, isa);
    case Family::kRows:
      return pack_csr(matrix, isa, true);
    case Family::kCsr:
      break;
  }
  return pack_csr(matrix, isa, false);
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
  return {matrix.values, static_cast<double>(matrix.rows), static_cast<double>(matrix.columns),
          static_cast<double>(matrix.links()), blocks ? count_vectors(matrix) : 0};
}

Family cheapest(const SparseMatrix& matrix, const Workload& work, Isa isa, bool blocks, int64_t tokens) {
  Family best = Family::kCsr;
  double least = std::numeric_limits<double>::infinity();
  for (const auto& [family, known] : kNames) {
    if (!can_hold(family, matrix, isa) || (family == Family::kPanel && !blocks)) continue;
    const double cost = cost_microseconds(family, work, isa, static_cast<double>(tokens));
    if (cost >= least) continue;
    least = cost;
    best = family;
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
  const Workload work = workload(matrix, blocks);
  const Family few = cheapest(matrix, work, isa, blocks, kFewTokens);
  const Family many = cheapest(matrix, work, isa, blocks, kManyTokens);
  const auto cost = [&](Family family, int64_t tokens) {
    return cost_microseconds(family, work, isa, static_cast<double>(tokens));
  };
  // A second copy of the weight must pay for its memory.
  if (cost(few, kManyTokens) <= kWorthACopy * cost(many, kManyTokens)) return {few, few, kAlways};
  if (cost(many, kFewTokens) <= kWorthACopy * cost(few, kFewTokens)) return {many, many, kAlways};
  int64_t from = kFewTokens + 1;
  while (from < kManyTokens && cost(few, from) <= cost(many, from)) ++from;
  return {few, many, from};
}

std::unique_ptr<Packing> pack(const SparseMatrix& matrix, Isa isa, bool blocks) {
  const Plan plan = make_plan(matrix, isa, blocks);
  if (plan.few == plan.many) return pack_family(plan.few, matrix, isa);
  return std::make_unique<PackedPair>(pack_family(plan.few, matrix, isa), pack_family(plan.many, matrix, isa),
                                      plan.many_from);
}

}  // namespace hebbline
