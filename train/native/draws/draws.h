// Weighted sampling without replacement: keys of an exponential race, and the smallest of them.
//
// Every number depends on its seed and place alone, and is formed by single additions, products and quotients, so that
// all instruction sets and any number of threads give the same bits.
#pragma once

#include <cstdint>

#include "platform/variants.h"

namespace hebbline {

// keys = Exp(1) / score^temperature, as logarithms where `temperature` is not 1; infinite where the score is not above
// 0 or `excluded` is 1. `excluded` may be null. Entry i takes half of the number of its pair: `place` + i / 2.
void race_keys(const float* scores, const uint8_t* excluded, int64_t count, uint64_t seed, uint64_t place,
               float temperature, Isa isa, int threads, float* keys);

// 1 for the `wanted` smallest of `keys`, of equal ones those that come first, and 0 for the others. Infinity and nan
// are never taken: returns how many were.
int64_t smallest(const float* keys, int64_t count, int64_t wanted, Isa isa, int threads, uint8_t* taken);

// One instruction set's kernels.
struct DrawKernels {
  // See `race_keys`; an even number of entries comes before.
  void (*race)(const float* scores, const uint8_t* excluded, int64_t count, uint64_t seed, uint64_t place,
               float temperature, float* keys);
  // Puts the keys from `low` to `high` into `found`, with room for all; returns their number, and adds that of those
  // below to `below`.
  int64_t (*between)(const float* keys, int64_t count, float low, float high, float* found, int64_t* below);
  // 1 for keys up to `last`, infinity and nan apart; returns their number.
  int64_t (*mark)(const float* keys, int64_t count, float last, uint8_t* taken);
};

HEBBLINE_DECLARE(DrawKernels, kDrawKernels)

}  // namespace hebbline
