// A physical copy of a weight, in the order that one family of kernels reads it.
//
// Legend: N rows of the weight (out_features), K its columns (in_features), M tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "linear/matrix.h"
#include "platform/cpu.h"
#include "platform/parallel.h"

namespace hebbline {

// One product: y_MN = x_MK W^T (+ bias_N).
struct Call {
  const float* x_MK;
  int64_t tokens;
  const float* bias_N;                    // null: none
  std::optional<float> activation_scale;  // quantised values only; none: each token's own
  float* y_MN;
};

// The families of physical order.
enum class Family {
  kCsr,    // links by rows, in blocks of columns; x transposed, a link times several tokens
  kSell,   // rows sorted by length in slices of 16, x gathered; few tokens
  kTile,   // expanded from a bitmask in tile order: 16 rows x 64 bytes
  kPanel,  // whole vectors of 16 rows, no mask: blocks
  kPick,   // strips of rows without what is not linked; x permuted to the links
  kBroad,  // as kPick, with windows four times as broad; few links
  kDense,  // all cells as float32
  kCoded,  // as kPick, of floats, with exponents in codes
  kQuad,   // links of integers by rows in fours; x transposed, four links times several tokens
};

// A packing computes; it never changes after construction, and may compute on many threads at a time. The order in
// which a sum is taken depends on the weight and `tokens` only, so that results do not depend on threads.
class Packing {
 public:
  virtual ~Packing() = default;
  virtual void multiply(const Call& call, const Parallel& parallel) const = 0;
  virtual size_t bytes() const = 0;
};

std::unique_ptr<Packing> pack_csr(const SparseMatrix& matrix, Isa isa);
std::unique_ptr<Packing> pack_sell(const SparseMatrix& matrix);                  // AVX-512; up to 65536 columns
std::unique_ptr<Packing> pack_tile(const SparseMatrix& matrix, Isa isa);         // AVX-512 or AMX
std::unique_ptr<Packing> pack_panel(const SparseMatrix& matrix, Isa isa);        // AVX-512
std::unique_ptr<Packing> pack_pick(const SparseMatrix& matrix);                  // AVX-512; up to 524288 columns
std::unique_ptr<Packing> pack_broad(const SparseMatrix& matrix);                 // the same
std::unique_ptr<Packing> pack_coded(const SparseMatrix& matrix);                 // the same; float32 and bfloat16
std::unique_ptr<Packing> pack_narrow_pick(const SparseMatrix& matrix, Isa isa);  // AVX2; 8 to 65536 columns
std::unique_ptr<Packing> pack_quad(const SparseMatrix& matrix, Isa isa);  // AVX2, NEON with dot products; integers
std::unique_ptr<Packing> pack_dense(const SparseMatrix& matrix, Isa isa);

}  // namespace hebbline
