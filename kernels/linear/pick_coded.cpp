#include "linear/pick_coded.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

namespace hebbline {
namespace {

constexpr size_t kExponents = 256;
constexpr int kMantissaBits = 23, kHalfMantissaBits = 7;
constexpr size_t kReadPast = 64;  // bytes: kernels load whole vectors

size_t exponent_of(float weight) { return std::bit_cast<uint32_t>(weight) >> kMantissaBits & 0xFF; }

// Exponents from 1 on that occur, the most common first.
std::vector<uint8_t> common_exponents(const SparseMatrix& matrix, std::array<int64_t, kExponents>& counts) {
  counts.fill(0);
  for (const float weight : matrix.weights_Z) ++counts[exponent_of(weight)];
  std::vector<uint8_t> order(kExponents - 1);
  std::iota(order.begin(), order.end(), uint8_t{1});
  std::stable_sort(order.begin(), order.end(), [&](uint8_t a, uint8_t b) { return counts[a] > counts[b]; });
  while (!order.empty() && counts[order.back()] == 0) order.pop_back();
  return order;
}

// Links of the same table, and the code of each exponent in it.
struct Part {
  SparseMatrix matrix;
  ExponentTable table{};
  std::array<uint8_t, kExponents> codes{};
};

void set_code(Part& part, uint8_t code, uint8_t exponent) {
  part.codes[exponent] = code;
  if (part.matrix.values == ValueType::kFloat32) {
    const uint32_t bits = uint32_t{exponent} << kMantissaBits;
    std::memcpy(part.table.data() + code * sizeof bits, &bits, sizeof bits);
  } else {
    const auto bits = static_cast<uint16_t>(exponent << kHalfMantissaBits);
    std::memcpy(part.table.data() + code * sizeof bits, &bits, sizeof bits);
  }
}

// The parts of a weight, one a table; zeros and denormals, which every table holds, are in the first.
std::vector<Part> split(const SparseMatrix& matrix) {
  std::array<int64_t, kExponents> counts;
  const std::vector<uint8_t> order = common_exponents(matrix, counts);
  const size_t free_codes = static_cast<size_t>(exponent_codes(matrix.values)) - 1;
  std::array<size_t, kExponents> part_of{};
  std::vector<Part> parts(std::max<size_t>(1, (order.size() + free_codes - 1) / free_codes));
  for (Part& part : parts) {
    part.matrix.rows = matrix.rows;
    part.matrix.columns = matrix.columns;
    part.matrix.values = matrix.values;
    part.matrix.row_offsets.push_back(0);
  }
  for (size_t i = 0; i < order.size(); ++i) {
    part_of[order[i]] = i / free_codes;
    set_code(parts[i / free_codes], static_cast<uint8_t>(1 + i % free_codes), order[i]);
  }
  for (int64_t n = 0; n < matrix.rows; ++n) {
    for (int64_t z = matrix.row_offsets[n]; z < matrix.row_offsets[n + 1]; ++z) {
      SparseMatrix& part = parts[part_of[exponent_of(matrix.weights_Z[z])]].matrix;
      part.columns_Z.push_back(matrix.columns_Z[z]);
      part.weights_Z.push_back(matrix.weights_Z[z]);
    }
    for (Part& part : parts) part.matrix.row_offsets.push_back(part.matrix.links());
  }
  return parts;
}

// Writes sign and mantissa to `out`: 3 bytes of float32, 1 of bfloat16.
void write_rest(ValueType values, float weight, uint8_t* out) {
  const auto bits = std::bit_cast<uint32_t>(weight);
  const auto top = static_cast<uint8_t>(bits >> 24 & 0x80) | static_cast<uint8_t>(bits >> 16 & 0x7F);
  if (values == ValueType::kFloat32) {
    out[0] = static_cast<uint8_t>(bits);
    out[1] = static_cast<uint8_t>(bits >> 8);
    out += 2;
  }
  *out = static_cast<uint8_t>(top);
}

void append_step(const Part& part, const StepShape& shape, int64_t start, const Cursors& from, const Cursors& to,
                 StepLists& lists) {
  const int64_t rest_bytes = part.matrix.values == ValueType::kFloat32 ? 3 : 1;
  const size_t place = lists.places.size(), value = lists.values.size();
  lists.places.resize(place + static_cast<size_t>(shape.rows * shape.links));
  lists.values.resize(value + static_cast<size_t>(shape.rows * shape.links * rest_bytes));
  for (int64_t r = 0; r < shape.rows; ++r) {
    int64_t slot = r * shape.links;
    for (int64_t z = from.next[r]; z < to.next[r]; ++z, ++slot) {
      const float weight = part.matrix.weights_Z[z];
      const int64_t code = part.codes[exponent_of(weight)];
      lists.places[place + slot] = static_cast<uint8_t>(part.matrix.columns_Z[z] - start + code * shape.window);
      write_rest(part.matrix.values, weight, lists.values.data() + value + slot * rest_bytes);
    }
  }
}

}  // namespace

int64_t count_rare_links(const SparseMatrix& matrix) {
  std::array<int64_t, kExponents> counts;
  const std::vector<uint8_t> order = common_exponents(matrix, counts);
  int64_t rare = 0;
  for (size_t i = static_cast<size_t>(exponent_codes(matrix.values)) - 1; i < order.size(); ++i) {
    rare += counts[order[i]];
  }
  return rare;
}

CodedSteps pack_coded(const SparseMatrix& matrix, const RowOrder& order, const StepShape& shape) {
  const std::vector<Part> parts = split(matrix);
  std::vector<StepWalk> walks;
  for (const Part& part : parts) walks.emplace_back(part.matrix, order.rows, shape);
  CodedSteps packed{StepLists(matrix, order.rows, shape), {}};
  StepLists& lists = packed.lists;
  for (int64_t strip = 0; strip * shape.rows < matrix.rows; ++strip) {
    lists.begin_strip();
    for (size_t p = 0; p < parts.size(); ++p) {
      lists.pack_strip(walks[p], strip, [&](int64_t start, const Cursors& from, const Cursors& to) {
        append_step(parts[p], shape, start, from, to, lists);
      });
      packed.tables.resize(lists.segments.size(), parts[p].table);
    }
  }
  lists.begin_strip();
  lists.values.resize(lists.values.size() + kReadPast);
  return packed;
}

}  // namespace hebbline
