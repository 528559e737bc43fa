#include "linear/plan.h"

#include <array>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace hebbline {
namespace {

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
  if (blocks && can_hold(Family::kPanel, matrix, isa)) return {Family::kPanel, Family::kPanel, kAlways};
  return {Family::kCsr, Family::kCsr, kAlways};
}

std::unique_ptr<Packing> pack(const SparseMatrix& matrix, Isa isa, bool blocks) {
  const Plan plan = make_plan(matrix, isa, blocks);
  if (plan.few == plan.many) return pack_family(plan.few, matrix, isa);
  return std::make_unique<PackedPair>(pack_family(plan.few, matrix, isa), pack_family(plan.many, matrix, isa),
                                      plan.many_from);
}

}  // namespace hebbline
