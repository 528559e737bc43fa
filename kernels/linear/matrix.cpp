#include "linear/matrix.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "linear/coded_values.h"
#include "linear/tensor_checks.h"
#include "platform/arithmetic.h"

namespace hebbline {
namespace {

using ort::ElementType;
using ort::TensorView;

constexpr int64_t kLargestExtent = int64_t{1} << 24;  // far above any layer, far below what overflows
constexpr int64_t kGroupStep = 64;                    // groups of columns are multiples of this
// The sum of this many products of two int8 still fits int32.
constexpr int64_t kQuantisedLinksPerRow = std::numeric_limits<int32_t>::max() / (127 * 128);

int64_t checked_extent(const LinearTensors& t, const char* what, int64_t extent) {
  if (extent < 0 || extent > kLargestExtent) {
    refuse(t,
           std::string(what) + " is " + std::to_string(extent) + ", not from 0 to " + std::to_string(kLargestExtent));
  }
  return extent;
}

ValueType value_type(const LinearTensors& t) {
  switch (t.values.type) {
    case ElementType::kFloat:
    case ElementType::kFloat16:
      return ValueType::kFloat32;
    case ElementType::kBfloat16:
      return ValueType::kBfloat16;
    case ElementType::kInt8:
      return ValueType::kInt8;
    case ElementType::kUint8:
      return ValueType::kInt4;
    default:
      refuse(t, "values are " + name(t.values.type) +
                    ", not float32, float16, bfloat16, int8 or uint8 (two 4-bit values)");
  }
}

// The signed value of a nibble in two's complement.
float nibble(const uint8_t* bytes, int64_t place) {
  const int bits = bytes[place / 2] >> (place % 2 * 4) & 15;
  return static_cast<float>(bits < 8 ? bits : bits - 16);
}

// Value `place` of the `values` tensor.
float value_at(const LinearTensors& t, int64_t place) {
  switch (t.values.type) {
    case ElementType::kFloat:
      return static_cast<const float*>(t.values.data)[place];
    case ElementType::kFloat16:
      return float16_to_float(static_cast<const uint16_t*>(t.values.data)[place]);
    case ElementType::kBfloat16:
      return bfloat16_to_float(static_cast<const uint16_t*>(t.values.data)[place]);
    case ElementType::kInt8:
      return static_cast<const int8_t*>(t.values.data)[place];
    default:
      return nibble(static_cast<const uint8_t*>(t.values.data), place);
  }
}

// The `values` of a flat form: [links], or [ceil(links / 2)] bytes of two, the unused nibble of which is 0.
void check_flat_values(const LinearTensors& t, int64_t links) {
  if (value_type(t) != ValueType::kInt4) return check_shape(t, "values", t.values, {links});
  check_shape(t, "values", t.values, {(links + 1) / 2});
  if (links % 2 == 1 && nibble(static_cast<const uint8_t*>(t.values.data), links) != 0) {
    refuse(t, "values end in a half byte that is not 0");
  }
}

// The groups that 4-bit scales [N, G] make of the columns.
void take_groups(const LinearTensors& t, SparseMatrix& matrix) {
  const auto& shape = t.scales->shape;
  if (shape.size() != 2 || shape[0] != matrix.rows || shape[1] < 1 || shape[1] > matrix.columns + 1) {
    refuse(t, "scales have shape " + shape_text(*t.scales) + ", not [out_features, groups]");
  }
  matrix.groups = shape[1];
  const int64_t steps = ceil_div(matrix.columns, kGroupStep * matrix.groups);
  matrix.group_width = kGroupStep * std::max<int64_t>(1, steps);
  if (std::max<int64_t>(1, ceil_div(matrix.columns, matrix.group_width)) != matrix.groups) {
    refuse(t, std::to_string(matrix.groups) + " groups of scales do not divide in_features into multiples of 64");
  }
}

void take_scales(const LinearTensors& t, SparseMatrix& matrix) {
  if (!matrix.quantised()) {
    if (t.scales != nullptr) refuse(t, "scales are given, but values are " + name(t.values.type));
    return;
  }
  if (t.scales == nullptr) refuse(t, "values are " + name(t.values.type) + ", but scales are not a constant input");
  check_type(t, "scales", *t.scales, ElementType::kFloat);
  if (matrix.values == ValueType::kInt8) check_shape(t, "scales", *t.scales, {matrix.rows});
  if (matrix.values == ValueType::kInt4) take_groups(t, matrix);
  const auto scales = t.scales->as<float>();
  matrix.scales_NG.assign(scales.begin(), scales.end());
  for (const float scale : scales) {
    if (!std::isfinite(scale)) refuse(t, "scales hold a value that is not finite");
  }
}

void check_row_lengths(const LinearTensors& t, const SparseMatrix& matrix) {
  if (!matrix.quantised()) return;
  for (int64_t n = 0; n < matrix.rows; ++n) {
    if (matrix.row_offsets[n + 1] - matrix.row_offsets[n] > kQuantisedLinksPerRow) {
      refuse(t, "row " + std::to_string(n) + " has more quantised links than int32 can sum");
    }
  }
}

SparseMatrix start(const LinearTensors& t, int64_t rows) {
  SparseMatrix matrix;
  matrix.values = value_type(t);
  matrix.rows = checked_extent(t, "out_features", rows);
  matrix.columns = checked_extent(t, "in_features", t.in_features);
  matrix.group_width = matrix.columns;
  take_scales(t, matrix);
  return matrix;
}

uint8_t mask_byte(const TensorView& mask, int64_t place) { return static_cast<const uint8_t*>(mask.data)[place]; }

// The number of links in a mask; refuses padding bits that are set.
int64_t count_bits(const LinearTensors& t, int64_t rows, int64_t row_bytes, int64_t columns) {
  int64_t links = 0;
  for (int64_t place = 0; place < rows * row_bytes; ++place) links += std::popcount(mask_byte(*t.mask, place));
  if (columns % 8 == 0) return links;
  for (int64_t n = 0; n < rows; ++n) {
    if (mask_byte(*t.mask, (n + 1) * row_bytes - 1) >> (columns % 8) != 0) {
      refuse(t, "mask has padding bits set in row " + std::to_string(n));
    }
  }
  return links;
}

// The rows and the places of a mask's links, without values.
SparseMatrix take_mask(const LinearTensors& t) {
  check_type(t, "mask", *t.mask, ElementType::kUint8);
  if (t.mask->shape.size() != 2) refuse(t, "mask has shape " + shape_text(*t.mask) + ", not [out_features, bytes]");
  SparseMatrix matrix = start(t, t.mask->shape[0]);
  const int64_t row_bytes = ceil_div(matrix.columns, 8);
  check_shape(t, "mask", *t.mask, {matrix.rows, row_bytes});
  matrix.columns_Z.reserve(static_cast<size_t>(count_bits(t, matrix.rows, row_bytes, matrix.columns)));
  matrix.row_offsets.push_back(0);
  for (int64_t n = 0; n < matrix.rows; ++n) {
    for (int64_t p = 0; p < row_bytes; ++p) {
      for (unsigned bits = mask_byte(*t.mask, n * row_bytes + p); bits != 0; bits &= bits - 1) {
        matrix.columns_Z.push_back(static_cast<int32_t>(p * 8 + std::countr_zero(bits)));
      }
    }
    matrix.row_offsets.push_back(matrix.links());
  }
  return matrix;
}

// Row offsets as int64, checked to run from 0 up to `links` without falling.
std::vector<int64_t> take_offsets(const LinearTensors& t, int64_t rows, int64_t links) {
  check_type(t, "row_offsets", *t.row_offsets, ElementType::kInt32);
  check_shape(t, "row_offsets", *t.row_offsets, {rows + 1});
  const auto offsets = t.row_offsets->as<int32_t>();
  std::vector<int64_t> result(offsets.begin(), offsets.end());
  if (result.front() != 0 || result.back() != links || !std::is_sorted(result.begin(), result.end())) {
    refuse(t, "row_offsets do not run from 0 up to " + std::to_string(links) + " without falling");
  }
  return result;
}

// Columns as int32, checked to be `links` places below `bound`, ascending in each row.
std::vector<int32_t> take_columns(const LinearTensors& t, const std::vector<int64_t>& offsets, int64_t bound) {
  const TensorView& columns = *t.columns;
  if (columns.type != ElementType::kUint16 && columns.type != ElementType::kInt32) {
    refuse(t, "columns are " + name(columns.type) + ", not uint16 or int32");
  }
  check_shape(t, "columns", columns, {offsets.back()});
  std::vector<int32_t> result(static_cast<size_t>(offsets.back()));
  if (columns.type == ElementType::kUint16) std::ranges::copy(columns.as<uint16_t>(), result.begin());
  if (columns.type == ElementType::kInt32) std::ranges::copy(columns.as<int32_t>(), result.begin());
  for (size_t n = 0; n + 1 < offsets.size(); ++n) {
    int32_t least = 0;
    for (int64_t z = offsets[n]; z < offsets[n + 1]; ++z) {
      if (result[z] < least || result[z] >= bound) {
        refuse(t, "columns of row " + std::to_string(n) + " do not ascend below " + std::to_string(bound));
      }
      least = result[z] + 1;
    }
  }
  return result;
}

int64_t checked_rows(const LinearTensors& t) {
  const TensorView& offsets = *t.row_offsets;
  if (offsets.shape.size() != 1 || offsets.shape[0] < 1) {
    refuse(t, "row_offsets have shape " + shape_text(offsets) + ", not [out_features + 1]");
  }
  return offsets.shape[0] - 1;
}

struct BlockShape {
  int64_t size, block_rows, block_columns;
};

int64_t block_out_features(const LinearTensors& t) {
  check_type(t, "out_features", *t.out_features, ElementType::kInt64);
  check_shape(t, "out_features", *t.out_features, {1});
  return *static_cast<const int64_t*>(t.out_features->data);
}

BlockShape check_blocks(const LinearTensors& t) {
  const auto& shape = t.values.shape;
  const int64_t size = shape.size() == 3 ? shape[1] : 0;
  const int64_t row_values = value_type(t) == ValueType::kInt4 ? 2 : 1;
  if (size < 1 || size > 256 || shape[2] * row_values != size) {
    refuse(t, "values have shape " + shape_text(t.values) + ", not [blocks, b, b] with b from 1 to 256");
  }
  const int64_t rows = checked_extent(t, "out_features", block_out_features(t));
  const int64_t columns = checked_extent(t, "in_features", t.in_features);
  return {size, ceil_div(rows, size), ceil_div(columns, size)};
}

// Appends the part of a block's row that lies within the matrix; refuses padding that is not 0.
void append_block_row(const LinearTensors& t, SparseMatrix& matrix, int64_t place, int64_t first_column, int64_t size) {
  for (int64_t j = 0; j < size; ++j) {
    const float weight = value_at(t, place + j);
    if (first_column + j < matrix.columns) {
      matrix.columns_Z.push_back(static_cast<int32_t>(first_column + j));
      matrix.weights_Z.push_back(weight);
    } else if (weight != 0) {
      refuse(t, "values past in_features are not 0");
    }
  }
}

// Rows of the last blocks that lie past out_features must hold nothing.
void check_rows_past_the_end(const LinearTensors& t, const BlockShape& shape, int64_t rows, int64_t first_block) {
  const int64_t used = shape.size - (shape.block_rows * shape.size - rows);
  for (int64_t block = first_block; block < t.values.shape[0]; ++block) {
    for (int64_t place = used * shape.size; place < shape.size * shape.size; ++place) {
      if (value_at(t, block * shape.size * shape.size + place) != 0) refuse(t, "values past out_features are not 0");
    }
  }
}

}  // namespace

double SparseMatrix::density() const {
  const double cells = static_cast<double>(rows) * static_cast<double>(columns);
  return cells > 0 ? static_cast<double>(links()) / cells : 0;
}

float SparseMatrix::float_weight(int64_t n, int64_t z) const {
  if (groups == 1) return weights_Z[z];
  return weights_Z[z] * scales_NG[n * groups + columns_Z[z] / group_width];
}

std::vector<float> SparseMatrix::row_scales() const {
  if (!quantised()) return {};
  return groups == 1 ? scales_NG : std::vector<float>(static_cast<size_t>(rows), 1.0F);
}

SparseMatrix decode_bitmask(const LinearTensors& t) {
  SparseMatrix matrix = take_mask(t);
  const int64_t links = matrix.links();
  check_flat_values(t, links);
  matrix.weights_Z.resize(static_cast<size_t>(links));
  for (int64_t z = 0; z < links; ++z) matrix.weights_Z[z] = value_at(t, z);
  check_row_lengths(t, matrix);
  return matrix;
}

SparseMatrix decode_coded(const LinearTensors& t) {
  SparseMatrix matrix = take_mask(t);
  matrix.weights_Z = decode_values(t, matrix.links());
  return matrix;
}

SparseMatrix decode_csr(const LinearTensors& t) {
  SparseMatrix matrix = start(t, checked_rows(t));
  if (t.columns->shape.size() != 1) refuse(t, "columns have shape " + shape_text(*t.columns) + ", not [links]");
  const int64_t links = t.columns->shape[0];
  check_flat_values(t, links);
  matrix.row_offsets = take_offsets(t, matrix.rows, links);
  matrix.columns_Z = take_columns(t, matrix.row_offsets, matrix.columns);
  matrix.weights_Z.resize(static_cast<size_t>(links));
  for (int64_t z = 0; z < links; ++z) matrix.weights_Z[z] = value_at(t, z);
  check_row_lengths(t, matrix);
  return matrix;
}

SparseMatrix decode_block(const LinearTensors& t) {
  const BlockShape shape = check_blocks(t);
  SparseMatrix matrix = start(t, block_out_features(t));
  const auto offsets = take_offsets(t, shape.block_rows, t.values.shape[0]);
  const auto block_columns = take_columns(t, offsets, shape.block_columns);
  matrix.row_offsets.push_back(0);
  for (int64_t n = 0; n < matrix.rows; ++n) {
    const int64_t block_row = n / shape.size, row = n % shape.size;
    for (int64_t block = offsets[block_row]; block < offsets[block_row + 1]; ++block) {
      append_block_row(t, matrix, (block * shape.size + row) * shape.size, block_columns[block] * shape.size,
                       shape.size);
    }
    matrix.row_offsets.push_back(matrix.links());
  }
  if (shape.block_rows > 0) check_rows_past_the_end(t, shape, matrix.rows, offsets[shape.block_rows - 1]);
  check_row_lengths(t, matrix);
  return matrix;
}

}  // namespace hebbline
