// A sparse weight, checked, in the one form that every packing starts from.
//
// Legend: N rows (out_features), K columns (in_features), Z links, G groups of columns that share a scale.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "numbers.h"
#include "ort/api.h"

namespace hebbline {

// Links in row-major order. `weights_Z` holds the values as float32: exact for float32 and bfloat16, the integers for
// int8 and int4. The weight of link z in row n is weights_Z[z] * scales_NG[n * G + column / group_width].
struct SparseMatrix {
  int64_t rows = 0;
  int64_t columns = 0;
  ValueType values = ValueType::kFloat32;
  std::vector<int64_t> row_offsets;  // [N + 1]
  std::vector<int32_t> columns_Z;    // ascending in each row
  std::vector<float> weights_Z;
  std::vector<float> scales_NG;  // empty for float32 and bfloat16
  int64_t groups = 1;
  int64_t group_width = 0;  // columns that share a scale: a multiple of 64, or all of them

  int64_t links() const { return static_cast<int64_t>(columns_Z.size()); }
  bool quantised() const { return values == ValueType::kInt8 || values == ValueType::kInt4; }
  double density() const;

  // For kernels that compute in float32: the weight of link z of row n, which is in group scales but not in row scales;
  // the row scales [N] that are left for the end (empty: none); and whether all weights are exact in bfloat16.
  float float_weight(int64_t n, int64_t z) const;
  std::vector<float> row_scales() const;
  bool fits_bfloat16() const { return values == ValueType::kBfloat16 || (quantised() && groups == 1); }
};

// The tensors of a node, as the canonical forms in hebbline.export.layouts define them.
struct LinearTensors {
  std::string node;  // for messages
  int64_t in_features = 0;
  ort::TensorView values;
  const ort::TensorView* mask = nullptr;          // BitmaskLinear, CodedLinear
  const ort::TensorView* codes = nullptr;         // CodedLinear
  const ort::TensorView* powers = nullptr;        // CodedLinear
  const ort::TensorView* fractions = nullptr;     // CodedLinear
  const ort::TensorView* row_offsets = nullptr;   // CsrLinear, BlockLinear
  const ort::TensorView* columns = nullptr;       // CsrLinear, BlockLinear
  const ort::TensorView* out_features = nullptr;  // BlockLinear
  const ort::TensorView* scales = nullptr;        // int8 and 4-bit values
};

// Decode and check. Each throws ort::Error, naming the node and the tensor, where the tensors do not fit together;
// nothing outside of them is read whatever they hold.
SparseMatrix decode_bitmask(const LinearTensors& tensors);
SparseMatrix decode_coded(const LinearTensors& tensors);
SparseMatrix decode_csr(const LinearTensors& tensors);
SparseMatrix decode_block(const LinearTensors& tensors);

}  // namespace hebbline
