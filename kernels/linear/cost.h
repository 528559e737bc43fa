// How long each family takes to multiply: the model by which a weight's packings are chosen.
#pragma once

#include "linear/packing.h"

namespace hebbline {

// What the model knows of a weight.
struct Workload {
  ValueType values;
  double rows, columns, links;
  double vectors;  // kPanel: vectors of 16 rows with a link
  double groups;   // of columns that share a scale
};

// Microseconds that one core takes to multiply `tokens` tokens, from memory.
//
// Constants were measured on processors with AVX-512 and without AMX (3.7 GHz, 20 GB/s) and, for Isa::kAmx, with it
// (13-16 GB/s); they matter in proportion to one another. hebbline.export.layouts.cost holds the same model.
double cost_microseconds(Family family, const Workload& work, Isa isa, double tokens);

}  // namespace hebbline
