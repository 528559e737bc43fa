// Sums of weights, and the largest of them that have a sum together, without sorting them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hebbline {

double sum_of(const double* weights_N, size_t count);

// kept_N = whether a weight is one of the largest, among equal ones of the first, that `before` needs to reach `target`
// together with them, which is more than `before`; all of them where they do not suffice. Weights are at least 0.
void keep_largest(const double* weights_N, int64_t count, double before, double target, uint8_t* kept_N);

}  // namespace hebbline
