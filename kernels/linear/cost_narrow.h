// How long the families of AVX2 take: the part of the model in cost.h for vectors of 32 bytes. Measured on Zen 4
// without its AVX-512, on random masks of 1% to 50%.
#pragma once

#include "linear/cost.h"

namespace hebbline {

// Nanoseconds that one core takes to multiply `tokens` tokens, from memory.
double narrow_pick_nanoseconds(const Workload& work, double tokens);
double quad_nanoseconds(const Workload& work, double tokens);

}  // namespace hebbline
