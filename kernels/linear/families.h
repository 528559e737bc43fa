// The names of the families of packings and of value types, and which weights a family can hold.
#pragma once

#include <optional>
#include <span>
#include <string_view>

#include "linear/packing.h"

namespace hebbline {

// All families, in the order in which equal ones are preferred.
std::span<const Family> all_families();

// The name that HEBBLINE_FAMILY, benchmarks and reports know a family by; none: there is no such family.
std::string_view name(Family family);
std::optional<Family> family_named(std::string_view name);

// The name that exports know a value type by ("float32", "bfloat16", "int8", "int4"); none: there is no such type.
std::optional<ValueType> values_named(std::string_view name);

// Whether a family holds weights of these values and so many columns, and has kernels for the instruction set.
bool can_hold(Family family, ValueType values, double columns, Isa isa);

}  // namespace hebbline
