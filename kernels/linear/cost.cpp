#include "linear/cost.h"

#include <array>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

namespace hebbline {
namespace {

// Nanoseconds of each term, for a family and a type of values.
struct FamilyCost {
  Family family;
  ValueType values;
  Amounts nanoseconds;
};

struct CostTable {
  bool is_measured;
  Amounts baseline;  // of ONNX Runtime's dense float32 product
  std::span<const FamilyCost> families;
};

#include "linear/cost_tables/amx.inc"
#include "linear/cost_tables/avx2-amd.inc"
#include "linear/cost_tables/avx2-intel.inc"
#include "linear/cost_tables/avx2-vnni.inc"
#include "linear/cost_tables/avx2-zen5.inc"
#include "linear/cost_tables/avx512-amd.inc"
#include "linear/cost_tables/avx512-intel.inc"
#include "linear/cost_tables/avx512-zen5.inc"
#include "linear/cost_tables/scalar.inc"

const CostTable& table_of_design(Microarchitecture design, const CostTable& amd, const CostTable& zen5,
                                 const CostTable& intel) {
  return design == Microarchitecture::kIntel ? intel : design == Microarchitecture::kZen5 ? zen5 : amd;
}

const CostTable& table_of(const Processor& processor) {
  switch (processor.isa) {
    case Isa::kAvx2:
      return table_of_design(processor.design, kAvx2AmdCosts, kAvx2Zen5Costs, kAvx2IntelCosts);
    case Isa::kNeon:  // whose families are those of AVX2 in narrower vectors, as is its dense product; not measured
    case Isa::kNeonDot:
    case Isa::kNeonI8mm:
      return kAvx2AmdCosts;
    case Isa::kAvx2Vnni:
      return kAvx2VnniCosts;
    case Isa::kAvx512:
      return table_of_design(processor.design, kAvx512AmdCosts, kAvx512Zen5Costs, kAvx512IntelCosts);
    case Isa::kAmx:
      return kAmxCosts;
    case Isa::kScalar:
    case Isa::kAmxEmulated:  // portable code
      break;
  }
  return kScalarCosts;
}

// What stands behind the name of an instruction set, by Microarchitecture.
constexpr std::array<std::pair<Microarchitecture, std::string_view>, 3> kEndings{
    {{Microarchitecture::kAmd, "-amd"}, {Microarchitecture::kZen5, "-zen5"}, {Microarchitecture::kIntel, "-intel"}}};

double nanoseconds(const Amounts& amounts, const Amounts& coefficients) {
  double sum = 0;
  for (size_t term = 0; term < kTerms; ++term) sum += amounts[term] * coefficients[term];
  return sum;
}

// A family that no measurement knows is never the cheapest.
constexpr double kUnknown = 1e12;

}  // namespace

std::optional<Processor> processor_named(std::string_view name) {
  for (const auto& [design, ending] : kEndings) {
    if (!name.ends_with(ending)) continue;
    const auto isa = isa_named(name.substr(0, name.size() - ending.size()));
    return isa ? std::optional(Processor(*isa, design)) : std::nullopt;
  }
  const auto isa = isa_named(name);
  return isa ? std::optional(Processor(*isa)) : std::nullopt;
}

double cost_microseconds(Family family, const Workload& work, const Processor& processor, double tokens, Found found) {
  for (const FamilyCost& row : table_of(processor).families) {
    if (row.family != family || row.values != work.values) continue;
    return nanoseconds(amounts(family, work, processor.isa, tokens, found), row.nanoseconds) / 1e3;
  }
  return kUnknown;
}

double baseline_microseconds(const Workload& work, const Processor& processor, double tokens, Found found) {
  return nanoseconds(baseline_amounts(work, tokens, found), table_of(processor).baseline) / 1e3;
}

std::string table_name(const Processor& processor) {
  const bool by_design = processor.isa == Isa::kAvx2 || processor.isa == Isa::kAvx512;
  const auto& ending = kEndings[static_cast<size_t>(processor.design)].second;
  return name(processor.isa) + (by_design ? std::string(ending) : "");
}

bool is_measured(const Processor& processor) { return table_of(processor).is_measured && !uses_neon(processor.isa); }

}  // namespace hebbline
