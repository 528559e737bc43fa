// What scores by pairs spend their time on.
//
// Legend: R nodes, C columns; B rows of a block; G groups of 4 entries; W words of 64 bits.
#pragma once

#include <cstdint>

namespace hebbline::avx512f {

constexpr int64_t kBlockRows = 4, kBlockColumns = 64, kVectorWords = 8;

// Similarities of 4 nodes, whose bits are `own`, to each of R nodes of their side. W is a multiple of 8.
void similarities(const uint64_t* const own[kBlockRows], const uint64_t* bits_RW, const float* degree_R, int64_t rows,
                  int64_t words, bool ch3, float* similar_BR, int64_t stride);

// sums_BC += for each of 4 rows, over groups of 4 entries of its similarities, those whose bits are set in a column's
// pattern. C is a multiple of 64.
void add_subset_sums(const float* similar_BR, int64_t similar_stride, int64_t groups, const uint8_t* patterns_GC,
                     int64_t columns, float* sums_BC, int64_t sums_stride);

}  // namespace hebbline::avx512f
