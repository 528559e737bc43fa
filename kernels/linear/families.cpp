#include "linear/families.h"

#include <array>
#include <utility>

namespace hebbline {
namespace {

constexpr std::array kFamilies{Family::kCsr, Family::kSell, Family::kTile, Family::kPanel, Family::kPick};

constexpr std::array<std::pair<std::string_view, ValueType>, 4> kValues{{{"float32", ValueType::kFloat32},
                                                                         {"bfloat16", ValueType::kBfloat16},
                                                                         {"int8", ValueType::kInt8},
                                                                         {"int4", ValueType::kInt4}}};

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
  }
  return "unknown";
}

std::optional<Family> family_named(std::string_view wanted) {
  for (const Family family : kFamilies) {
    if (name(family) == wanted) return family;
  }
  return std::nullopt;
}

std::optional<ValueType> values_named(std::string_view wanted) {
  for (const auto& [known, values] : kValues) {
    if (known == wanted) return values;
  }
  return std::nullopt;
}

bool can_hold(Family family, ValueType values, double columns, Isa isa) {
  constexpr double kUint16Columns = 1 << 16;
  constexpr double kPickColumns = kUint16Columns * 8;  // windows of float32, 8 columns apart
  switch (family) {
    case Family::kCsr:
      return true;
    case Family::kSell:
      return uses_avx512(isa) && columns <= kUint16Columns;
    case Family::kTile:
      return uses_avx512(isa) || (isa == Isa::kAmxEmulated && values != ValueType::kFloat32);
    case Family::kPanel:
      return uses_avx512(isa);
    case Family::kPick:
      return uses_avx512(isa) && columns <= kPickColumns;
  }
  return false;
}

}  // namespace hebbline
