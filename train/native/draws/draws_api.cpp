// What Python calls by name.

#include <exception>

#include "draws/draws.h"

// See `hebbline::race_keys`. Returns 1; -1 where memory or threads ran out or HEBBLINE_ISA names what is not there.
extern "C" __attribute__((visibility("default"))) int hebbline_race_keys(const float* scores, const uint8_t* excluded,
                                                                         int64_t count, uint64_t seed, uint64_t place,
                                                                         float temperature, int threads, float* keys) {
  try {
    hebbline::race_keys(scores, excluded, count, seed, place, temperature, hebbline::select_isa(), threads, keys);
    return 1;
  } catch (const std::exception&) {
    return -1;
  }
}

// See `hebbline::smallest`. Returns how many were taken; -1 where memory or threads ran out or HEBBLINE_ISA names what
// is not there.
extern "C" __attribute__((visibility("default"))) int64_t hebbline_smallest(const float* keys, int64_t count,
                                                                            int64_t wanted, int threads,
                                                                            uint8_t* taken) {
  try {
    return hebbline::smallest(keys, count, wanted, hebbline::select_isa(), threads, taken);
  } catch (const std::exception&) {
    return -1;
  }
}
