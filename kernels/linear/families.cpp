#include "linear/families.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "linear/pick_narrow.h"
#include "linear/quad.h"

namespace hebbline {
namespace {

constexpr std::array kFamilies{Family::kCsr,   Family::kSell,  Family::kTile, Family::kPanel, Family::kPick,
                               Family::kBroad, Family::kCoded, Family::kQuad, Family::kDense};

constexpr std::array<std::pair<std::string_view, ValueType>, 4> kValues{{{"float32", ValueType::kFloat32},
                                                                         {"bfloat16", ValueType::kBfloat16},
                                                                         {"int8", ValueType::kInt8},
                                                                         {"int4", ValueType::kInt4}}};

// Columns that share a scale: SparseMatrix::group_width.
double group_width(const Workload& work) {
  constexpr double kGroupStep = 64;
  return kGroupStep * std::max(1.0, std::ceil(work.columns / (kGroupStep * std::max(1.0, work.groups))));
}

}  // namespace

std::span<const Family> all_families() { return kFamilies; }

std::string_view name(Family family) {
  switch (family) {
    case Family::kCsr:
      return "csr";
    case Family::kSell:
      return "sell";
    case Family::kTile:
      return "tile";
    case Family::kPanel:
      return "panel";
    case Family::kPick:
      return "pick";
    case Family::kBroad:
      return "broad";
    case Family::kCoded:
      return "coded";
    case Family::kQuad:
      return "quad";
    case Family::kDense:
      return "dense";
  }
  return "unknown";
}

std::optional<Family> family_named(std::string_view wanted) {
  for (const Family family : kFamilies) {
    if (name(family) == wanted) return family;
  }
  return std::nullopt;
}

std::string family_names() {
  std::string names;
  for (const Family family : kFamilies) names += (names.empty() ? "" : ", ") + std::string(name(family));
  return names;
}

std::optional<ValueType> values_named(std::string_view wanted) {
  for (const auto& [known, values] : kValues) {
    if (known == wanted) return values;
  }
  return std::nullopt;
}

bool can_hold(Family family, const Workload& work, Isa isa) {
  constexpr double kUint16Columns = 1 << 16;
  constexpr double kPickColumns = kUint16Columns * 8;  // windows of float32, 8 columns apart
  const bool quantised = work.values == ValueType::kInt8 || work.values == ValueType::kInt4;
  switch (family) {
    case Family::kCsr:
    case Family::kDense:
      return true;
    case Family::kSell:
      return uses_avx512(isa) && work.columns <= kUint16Columns;
    case Family::kTile:
      return uses_avx512(isa) || (isa == Isa::kAmxEmulated && work.values != ValueType::kFloat32);
    case Family::kPanel:
      return uses_avx512(isa);
    case Family::kPick:
      if (uses_avx2(isa)) return work.columns <= kUint16Columns && work.columns >= kBroadWindow / 4;
      return uses_avx512(isa) && work.columns <= kPickColumns;
    case Family::kBroad:
      return uses_avx512(isa) && work.columns <= kPickColumns;
    case Family::kCoded:
      return uses_avx512(isa) && !quantised && work.columns <= kPickColumns;
    case Family::kQuad:
      return (uses_avx2(isa) || uses_neon_dot(isa)) && quantised &&
             (work.groups == 1 || group_width(work) <= static_cast<double>(kWidestQuadBlock));
  }
  return false;
}

}  // namespace hebbline
