// The families of packings and the value types by name, and which weights a family can hold.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "linear/packing.h"

namespace hebbline {

// What is known of a weight without a look at its links.
struct Workload {
  ValueType values;
  double rows, columns, links;
  double vectors;         // kPanel: vectors of 16 rows with a link; 0: its links are not whole blocks
  double groups;          // of columns that share a scale
  double rare_links = 0;  // kCoded: those whose exponents have no code in the first table
};

// All families, in the order in which equal ones are preferred.
std::span<const Family> all_families();

// The name that HEBBLINE_FAMILY, benchmarks and reports know a family by; none: there is no such family.
std::string_view name(Family family);
std::optional<Family> family_named(std::string_view name);

// All those names, for messages.
std::string family_names();

// The name that exports know a value type by ("float32", "bfloat16", "int8", "int4"); none: there is no such type.
std::optional<ValueType> values_named(std::string_view name);

// Whether a family can hold such a weight, and has kernels for the instruction set.
bool can_hold(Family family, const Workload& work, Isa isa);

}  // namespace hebbline
