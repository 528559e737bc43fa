// Runs every kernel of the linear ops, and the decoder on damaged tensors, without ONNX Runtime: for the sanitizers.
// Prints what it ran; exits with 1 where a result is wrong. tests/kernels/test_sanitized.py builds and runs it.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "linear/gated.h"
#include "linear/plan.h"
#include "ort/api.h"

namespace {

using hebbline::Family;
using hebbline::Isa;
using hebbline::SparseMatrix;
using hebbline::ValueType;
using hebbline::ort::ElementType;
using hebbline::ort::TensorView;

std::mt19937 generator(7);

int below(int bound) { return static_cast<int>(generator() % static_cast<unsigned>(bound)); }
float real() { return std::normal_distribution<float>()(generator); }

// A copy on the heap at its exact size, so that a read past its end is seen.
template <class T>
struct Tensor {
  std::vector<T> items;
  TensorView view(ElementType type, std::vector<int64_t> shape) const { return {type, std::move(shape), items.data()}; }
};

// `uneven`: of every four rows, three have a tenth of the links, so that packings that sort rows do.
SparseMatrix random_matrix(int64_t rows, int64_t columns, double density, ValueType values, bool uneven) {
  SparseMatrix matrix;
  matrix.rows = rows;
  matrix.columns = columns;
  matrix.values = values;
  matrix.group_width = columns;
  if (values == ValueType::kInt4 && columns > 64) {
    matrix.group_width = 64;
    matrix.groups = (columns + 63) / 64;
  }
  matrix.row_offsets.push_back(0);
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t k = 0; k < columns; ++k) {
      const double share = uneven && n % 4 != 0 ? density / 10 : density;
      if (n == rows / 2 || below(1000) >= share * 1000) continue;
      matrix.columns_Z.push_back(static_cast<int32_t>(k));
      float weight = real();
      if (values == ValueType::kBfloat16) weight = static_cast<float>(below(255) - 127) / 64;
      if (values == ValueType::kInt8) weight = static_cast<float>(below(255) - 127);
      if (values == ValueType::kInt4) weight = static_cast<float>(below(15) - 7);
      matrix.weights_Z.push_back(weight);
    }
    matrix.row_offsets.push_back(matrix.links());
  }
  if (matrix.quantised()) matrix.scales_NG.assign(static_cast<size_t>(rows * matrix.groups), 0.01F);
  return matrix;
}

// The largest difference to float64 with X as it is, relative to the largest |Y|.
double difference(const SparseMatrix& matrix, const std::vector<float>& x, const std::vector<float>& y,
                  int64_t tokens) {
  double worst = 0, most = 1e-30;
  for (int64_t m = 0; m < tokens; ++m) {
    for (int64_t n = 0; n < matrix.rows; ++n) {
      double sum = 0.25 * static_cast<double>(n);
      for (int64_t z = matrix.row_offsets[n]; z < matrix.row_offsets[n + 1]; ++z) {
        const double scale = matrix.quantised() ? 0.01F : 1.0;
        sum += scale * matrix.weights_Z[z] * x[m * matrix.columns + matrix.columns_Z[z]];
      }
      worst = std::fmax(worst, std::fabs(sum - y[m * matrix.rows + n]));
      most = std::fmax(most, std::fabs(sum));
    }
  }
  return worst / most;
}

int check_product(const SparseMatrix& matrix, Isa isa, int64_t tokens, const hebbline::Packing& packing) {
  // Whole numbers up to 127, one of them in each token, are exact in every rounding.
  std::vector<float> x(static_cast<size_t>(tokens * matrix.columns)), bias;
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(below(255) - 127);
  for (int64_t m = 0; m < tokens && matrix.columns > 0; ++m) x[m * matrix.columns] = 127;
  for (int64_t n = 0; n < matrix.rows; ++n) bias.push_back(0.25F * static_cast<float>(n));
  std::vector<float> y(static_cast<size_t>(tokens * matrix.rows), NAN);
  packing.multiply({x.data(), tokens, bias.data(), {}, y.data()}, [](size_t count, const auto& task) {
    for (size_t i = count; i-- > 0;) task(i);
  });
  const double worst = difference(matrix, x, y, tokens);
  if (worst < 2e-6) return 0;
  std::printf("WRONG: %s values %d [%ld, %ld] tokens %ld: %g\n", name(isa).c_str(), static_cast<int>(matrix.values),
              static_cast<long>(matrix.rows), static_cast<long>(matrix.columns), static_cast<long>(tokens), worst);
  return 1;
}

int check_family(Family family, Isa isa) {
  const std::string named(hebbline::name(family));
  setenv("HEBBLINE_FAMILY", named.c_str(), 1);
  int wrong = 0, ran = 0;
  const int64_t shapes[][2] = {{1, 1}, {33, 7}, {70, 129}, {16, 64}, {130, 520}, {3, 33000}};
  for (const auto& shape : shapes) {
    for (const ValueType values : {ValueType::kFloat32, ValueType::kBfloat16, ValueType::kInt8, ValueType::kInt4}) {
      const double density = shape[1] > 1000 ? 0.01 : 0.3;
      const SparseMatrix matrix = random_matrix(shape[0], shape[1], density, values, shape[0] == 130);
      std::unique_ptr<hebbline::Packing> packing;
      try {
        packing = hebbline::pack(matrix, isa, false);
      } catch (const std::runtime_error&) {
        continue;  // this family does not hold these values
      }
      for (const int64_t tokens : {0, 1, 3, 8, 17, 33, 70}) {
        if (isa == Isa::kAmxEmulated && tokens * matrix.links() > 1000000) continue;
        wrong += check_product(matrix, isa, tokens, *packing);
        ++ran;
      }
    }
  }
  if (ran > 0) std::printf("%s %s: %d products, %d wrong\n", name(isa).c_str(), named.c_str(), ran, wrong);
  return wrong;
}

// Tensors of a CsrLinear with random damage: decoding them must succeed or throw, and never read past their ends.
int damage_csr(int round) {
  const int64_t rows = below(6), columns = 1 + below(40);
  Tensor<int32_t> offsets{{0}};
  Tensor<uint16_t> places;
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t k = 0; k < columns; ++k) {
      if (below(3) == 0) places.items.push_back(static_cast<uint16_t>(k));
    }
    offsets.items.push_back(static_cast<int32_t>(places.items.size()));
  }
  Tensor<float> values{std::vector<float>(places.items.size(), 1.5F)};
  const auto size = [](const auto& tensor) { return static_cast<int64_t>(tensor.items.size()); };
  if (round % 2 == 1) offsets.items[below(static_cast<int>(offsets.items.size()))] += below(7) - 3;
  if (round % 3 == 1 && !places.items.empty()) places.items[below(static_cast<int>(size(places)))] = below(65536);
  if (round % 5 == 1) offsets.items.back() = static_cast<int32_t>(generator());
  if (round % 7 == 1 && !values.items.empty()) values.items.pop_back();
  hebbline::LinearTensors tensors;
  tensors.node = "damaged";
  tensors.in_features = round % 11 == 1 ? static_cast<int64_t>(generator()) - (1LL << 31) : columns;
  tensors.values = values.view(ElementType::kFloat, {size(values)});
  const TensorView row_offsets = offsets.view(ElementType::kInt32, {size(offsets)});
  const TensorView place_view = places.view(ElementType::kUint16, {size(places)});
  tensors.row_offsets = &row_offsets;
  tensors.columns = &place_view;
  try {
    const SparseMatrix matrix = decode_csr(tensors);
    if (matrix.columns > 100000) return 0;
    setenv("HEBBLINE_FAMILY", "", 1);
    return check_product(matrix, Isa::kScalar, 2, *hebbline::pack(matrix, Isa::kScalar, false));
  } catch (const hebbline::ort::Error&) {
    return 0;
  }
}

int damage_bitmask(int round) {
  const int64_t rows = below(6), columns = 1 + below(40), row_bytes = (columns + 7) / 8;
  Tensor<uint8_t> mask{std::vector<uint8_t>(static_cast<size_t>(rows * row_bytes))};
  for (uint8_t& byte : mask.items) byte = round % 4 == 0 ? below(256) : below(2);
  int64_t links = 0;
  for (const uint8_t byte : mask.items) links += __builtin_popcount(byte);
  Tensor<uint8_t> values{std::vector<uint8_t>(static_cast<size_t>((links + round % 3) / 2), 0x31)};
  Tensor<float> scales{std::vector<float>(static_cast<size_t>(rows), 0.01F)};
  hebbline::LinearTensors tensors;
  tensors.node = "damaged";
  tensors.in_features = columns + (round % 5 == 1 ? below(20) - 10 : 0);
  tensors.values = values.view(ElementType::kUint8, {static_cast<int64_t>(values.items.size())});
  const TensorView mask_view = mask.view(ElementType::kUint8, {rows, row_bytes});
  const TensorView scale_view = scales.view(ElementType::kFloat, {rows, round % 7 == 1 ? 2 : 1});
  tensors.mask = &mask_view;
  tensors.scales = &scale_view;
  try {
    const SparseMatrix matrix = decode_bitmask(tensors);
    setenv("HEBBLINE_FAMILY", "", 1);
    return check_product(matrix, Isa::kScalar, 2, *hebbline::pack(matrix, Isa::kScalar, false));
  } catch (const hebbline::ort::Error&) {
    return 0;
  }
}

int64_t size_of(const auto& tensor) { return static_cast<int64_t>(tensor.items.size()); }

// Tensors of a CodedLinear of bfloat16.
struct CodedTensors {
  Tensor<uint8_t> mask, codes, fractions;
  Tensor<uint16_t> values, powers;
  int64_t rows = 0, row_bytes = 0, planes = 0, plane_bytes = 0;
};

// Sound ones, of codes of any width.
CodedTensors coded_tensors(int64_t columns) {
  CodedTensors t;
  t.rows = below(6);
  t.row_bytes = (columns + 7) / 8;
  t.planes = 1 + below(4);
  t.mask.items.resize(static_cast<size_t>(t.rows * t.row_bytes));
  int64_t links = 0;
  for (uint8_t& byte : t.mask.items) byte = static_cast<uint8_t>(below(2));
  for (const uint8_t byte : t.mask.items) links += byte;
  const int powers = below(1 << t.planes);
  for (int i = 0; i < powers; ++i) t.powers.items.push_back(static_cast<uint16_t>((100 + i) << 7));
  t.plane_bytes = (links + 7) / 8;
  t.codes.items.resize(static_cast<size_t>(t.planes * t.plane_bytes));
  for (int64_t z = 0; z < links; ++z) {
    const int code = below(powers + 1);
    for (int64_t plane = 0; plane < t.planes; ++plane) {
      t.codes.items[plane * t.plane_bytes + z / 8] |= (code >> plane & 1) << (z % 8);
    }
    if (code == 0) t.values.items.push_back(0x3F80);
    if (code != 0) t.fractions.items.push_back(static_cast<uint8_t>(below(256)));
  }
  return t;
}

int damage_coded(int round) {
  const int64_t columns = 1 + below(40);
  CodedTensors t = coded_tensors(columns);
  const bool sound =
      round % 2 != 1 && round % 3 != 1 && round % 5 != 1 && round % 7 != 1 && round % 11 != 1 && round % 13 != 1;
  if (round % 2 == 1 && !t.codes.items.empty())
    t.codes.items[below(static_cast<int>(size_of(t.codes)))] ^= 1 + below(255);
  if (round % 3 == 1 && !t.powers.items.empty())
    t.powers.items[below(static_cast<int>(size_of(t.powers)))] = below(65536);
  if (round % 5 == 1 && !t.values.items.empty()) t.values.items.pop_back();
  if (round % 7 == 1 && !t.fractions.items.empty()) t.fractions.items.pop_back();
  if (round % 11 == 1 && !t.mask.items.empty()) t.mask.items[below(static_cast<int>(size_of(t.mask)))] = below(256);
  hebbline::LinearTensors tensors;
  tensors.node = "damaged";
  tensors.in_features = columns;
  tensors.values = t.values.view(ElementType::kBfloat16, {size_of(t.values)});
  const TensorView mask = t.mask.view(ElementType::kUint8, {t.rows, t.row_bytes});
  const TensorView codes = t.codes.view(ElementType::kUint8, {t.planes, t.plane_bytes});
  const TensorView powers = t.powers.view(ElementType::kBfloat16, {size_of(t.powers)});
  const int64_t width = round % 13 == 1 ? 3 : 1;
  const TensorView fractions = t.fractions.view(ElementType::kUint8, {size_of(t.fractions) / width, width});
  tensors.mask = &mask;
  tensors.codes = &codes;
  tensors.powers = &powers;
  tensors.fractions = &fractions;
  try {
    const SparseMatrix matrix = decode_coded(tensors);
    setenv("HEBBLINE_FAMILY", "", 1);
    const auto packing = hebbline::pack(matrix, Isa::kScalar, false);
    return sound ? check_product(matrix, Isa::kScalar, 2, *packing) : 0;
  } catch (const hebbline::ort::Error& error) {
    if (sound) std::printf("WRONG: refused: %s\n", error.what());
    return sound ? 1 : 0;
  }
}

// Gate and up as one stack and as two packings: only their own memory is read, and products are finite.
int check_gated(Isa isa, ValueType values) {
  int wrong = 0;
  unsetenv("HEBBLINE_FAMILY");
  for (const double density : {0.3, 0.05}) {
    std::vector<hebbline::StackPart> parts;
    parts.push_back({random_matrix(33, 130, 0.3, values, false), std::nullopt});
    parts.push_back({random_matrix(33, 130, density, values, false), std::nullopt});
    if (density < 0.3 && values == ValueType::kInt8) parts[1].activation_scale = 0.05F;  // keeps them apart
    const hebbline::Stack stack(std::move(parts), isa, false, std::vector<float>(66, 0.5F));
    for (const int64_t tokens : {1, 9, 70}) {
      std::vector<float> x(static_cast<size_t>(tokens * 130)), y(static_cast<size_t>(tokens * 33), NAN);
      for (float& each : x) each = real();
      for (const auto activation : {hebbline::Activation::kSilu, hebbline::Activation::kGelu,
                                    hebbline::Activation::kGeluTanh, hebbline::Activation::kRelu}) {
        hebbline::multiply_gated(stack, hebbline::gate_kernels(isa), activation, x.data(), tokens, y.data(),
                                 [](size_t count, const auto& task) {
                                   for (size_t i = count; i-- > 0;) task(i);
                                 });
        for (const float each : y) wrong += std::isfinite(each) ? 0 : 1;
      }
    }
  }
  std::printf("%s gated, values %d\n", name(isa).c_str(), static_cast<int>(values));
  return wrong;
}

int check_gates(Isa isa) {
  int wrong = 0;
  for (const ValueType values : {ValueType::kFloat32, ValueType::kBfloat16, ValueType::kInt8, ValueType::kInt4}) {
    wrong += check_gated(isa, values);
  }
  return wrong;
}

}  // namespace

int main() {
  int wrong = 0;
  for (const Isa isa : hebbline::available_isas()) {
    for (const Family family : hebbline::all_families()) wrong += check_family(family, isa);
    wrong += check_gates(isa);
  }
  wrong += check_family(Family::kTile, Isa::kAmxEmulated);
  for (int round = 0; round < 3000; ++round) {
    wrong += damage_csr(round) + damage_bitmask(round) + damage_coded(round);
  }
  std::printf("9000 damaged tensors decoded or refused\n");
  return wrong == 0 ? 0 : 1;
}
