// How long each family takes to multiply: the model by which a weight's packings are chosen, and by which exports and
// benchmarks predict.
//
// What a family does for a call is counted in `amounts.h`. A table of nanoseconds for each amount turns that into a
// time. Tables are fitted to measurements, one for each instruction set and, where processors of several designs have
// it, microarchitecture: see hebbline.benchmarks.fit_cost.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "linear/amounts.h"
#include "platform/cpu.h"

namespace hebbline {

// What costs are asked for: an instruction set, on processors of a design.
struct Processor {
  Isa isa;
  Microarchitecture design;

  Processor(Isa isa, Microarchitecture design = this_microarchitecture())  // NOLINT(google-explicit-constructor)
      : isa(isa), design(design) {}
};

// The processor of a name: an instruction set, for this machine's design, or with "-amd", "-zen5" or "-intel" behind
// it. None: there is no such instruction set.
std::optional<Processor> processor_named(std::string_view name);

// Microseconds that one core takes.
double cost_microseconds(Family family, const Workload& work, const Processor& processor, double tokens,
                         Found found = Found::kMemory);
double baseline_microseconds(const Workload& work, const Processor& processor, double tokens,
                             Found found = Found::kMemory);

// The table that holds for a processor: its instruction set, with the design behind it where there is a table for each.
std::string table_name(const Processor& processor);

// Whether the table was fitted to measurements on such a processor.
bool is_measured(const Processor& processor);

}  // namespace hebbline
