#include "linear/strips.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "linear/packing.h"
#include "platform/arithmetic.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kStripsPerTask = 4;
constexpr int64_t kTokensPerTask = 8;
constexpr int64_t kTokensRoundedTo = 8;
constexpr int64_t kTileRows = 16;  // tokens of a tile
constexpr int64_t kVectorBytes = 64;

int64_t columns_per_unit(Kind kind) { return kind == Kind::kFloat32 ? 1 : kind == Kind::kBfloat16 ? 2 : 4; }

const StripKernels* strip_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512 || isa == Isa::kAmx) {
    return cpu_features().avx512_bf16 ? &avx512bf16::kStripKernels : &avx512::kStripKernels;
  }
#endif
  static_cast<void>(isa);
  return nullptr;
}

const TileKernels* tile_kernels(Isa isa, Kind kind) {
  if (kind == Kind::kFloat32) return nullptr;
#if defined(__x86_64__)
  if (isa == Isa::kAmx) return &amx::kTileKernels;
#endif
  return isa == Isa::kAmxEmulated ? &emulated::kTileKernels : nullptr;
}

// One link within a strip: its place in its vector, and its value.
struct Cell {
  int32_t unit;
  int32_t element;  // lane x columns of a unit + column within the unit
  float weight;
};

// Packs a matrix, strip by strip.
class Packer {
 public:
  Packer(const SparseMatrix& matrix, Kind kind, bool masked)
      : matrix_(matrix), kind_(kind), masked_(masked), width_(columns_per_unit(kind)) {
    units_ = round_up(ceil_div(matrix.columns, width_), kTileUnits);
    // Whole tiles either way: groups are multiples of 64 columns.
    group_units_ = matrix.groups == 1 ? std::max(units_, kTileUnits) : matrix.group_width / width_;
  }

  void pack_strip(int64_t strip) {
    collect(strip);
    value_offsets.push_back(static_cast<int64_t>(values.size()));
    vector_offsets.push_back(static_cast<int64_t>(vector_units.size()));
    segment_offsets.push_back(static_cast<int64_t>(segments.size()));
    const auto mask_start = masks.size();
    if (masked_) masks.resize(mask_start + static_cast<size_t>(units_ * mask_bytes()));
    for (size_t first = 0, last = 0; first < cells_.size(); first = last) {
      while (last < cells_.size() && cells_[last].unit == cells_[first].unit) ++last;
      const std::span<const Cell> cells(cells_.data() + first, last - first);
      masked_ ? append_selected(cells, masks.data() + mask_start) : append_whole(cells);
    }
    cut_segments(strip);
  }

  int64_t units() const { return units_; }

  std::vector<uint8_t> values, masks;
  std::vector<uint32_t> vector_units;
  std::vector<int64_t> value_offsets, vector_offsets, segment_offsets;
  std::vector<Segment> segments;
  std::vector<float> scales;
  std::vector<int32_t> corrections;

 private:
  bool integer() const { return kind_ == Kind::kInt8 || kind_ == Kind::kInt4; }
  int64_t mask_bytes() const { return 2 * width_; }
  int64_t value_bytes() const { return 4 / width_; }

  // The links of a strip by unit, and within a unit by row and column.
  void collect(int64_t strip) {
    cells_.clear();
    const int64_t last = std::min(matrix_.rows, (strip + 1) * kLanes);
    for (int64_t n = strip * kLanes; n < last; ++n) {
      for (int64_t z = matrix_.row_offsets[n]; z < matrix_.row_offsets[n + 1]; ++z) {
        const int64_t k = matrix_.columns_Z[z];
        const auto element = static_cast<int32_t>(n % kLanes * width_ + k % width_);
        cells_.push_back({static_cast<int32_t>(k / width_), element, matrix_.weights_Z[z]});
      }
    }
    std::stable_sort(cells_.begin(), cells_.end(), [](const Cell& a, const Cell& b) { return a.unit < b.unit; });
  }

  void write_value(uint8_t* out, float weight) const {
    if (kind_ == Kind::kFloat32) std::memcpy(out, &weight, 4);
    if (kind_ == Kind::kBfloat16) {
      const auto half = static_cast<uint16_t>(std::bit_cast<uint32_t>(weight) >> 16);
      std::memcpy(out, &half, 2);
    }
    if (integer()) *out = static_cast<uint8_t>(static_cast<int8_t>(weight));
  }

  void append_selected(std::span<const Cell> cells, uint8_t* strip_masks) {
    uint8_t* mask = strip_masks + cells[0].unit * mask_bytes();
    const size_t start = values.size();
    const auto count = static_cast<int64_t>(cells.size());
    values.resize(start + static_cast<size_t>(kind_ == Kind::kInt4 ? ceil_div(count, 2) : count * value_bytes()));
    for (int64_t i = 0; i < count; ++i) {
      mask[cells[i].element / 8] |= static_cast<uint8_t>(1U << cells[i].element % 8);
      if (kind_ == Kind::kInt4) {
        const auto half = static_cast<uint8_t>(static_cast<int>(cells[i].weight) + 8);
        values[start + static_cast<size_t>(i / 2)] |= static_cast<uint8_t>(half << i % 2 * 4);
      } else {
        write_value(values.data() + start + i * value_bytes(), cells[i].weight);
      }
    }
  }

  void append_whole(std::span<const Cell> cells) {
    const size_t start = values.size();
    values.resize(start + kVectorBytes);
    for (const Cell& cell : cells) write_value(values.data() + start + cell.element * value_bytes(), cell.weight);
    vector_units.push_back(static_cast<uint32_t>(cells[0].unit));
  }

  int64_t unit_of(int64_t strip, int64_t vector) const {
    return masked_ ? vector : vector_units[vector_offsets[strip] + vector];
  }

  void cut_segments(int64_t strip) {
    const int64_t vectors = masked_ ? units_ : static_cast<int64_t>(vector_units.size()) - vector_offsets.back();
    for (int64_t first = 0, last = 0; first < vectors; first = last) {
      const int64_t group = unit_of(strip, first) / group_units_;
      while (last < vectors && last - first < kSegmentUnits && unit_of(strip, last) / group_units_ == group) ++last;
      segments.push_back({static_cast<int32_t>(first), static_cast<int32_t>(last)});
      if (integer()) append_scales(strip, group, unit_of(strip, first), unit_of(strip, last - 1));
    }
  }

  // Scales and corrections of the segment of units [first, last] of a strip.
  void append_scales(int64_t strip, int64_t group, int64_t first, int64_t last) {
    int32_t sums[kLanes] = {};
    const auto start =
        std::ranges::lower_bound(cells_, first, {}, [](const Cell& cell) -> int64_t { return cell.unit; });
    for (auto cell = start; cell != cells_.end() && cell->unit <= last; ++cell) {
      sums[cell->element / width_] += static_cast<int32_t>(cell->weight);
    }
    for (int64_t r = 0; r < kLanes; ++r) {
      const int64_t n = strip * kLanes + r;
      // The last tile may reach past the last group.
      const int64_t known = std::min(group, matrix_.groups - 1);
      scales.push_back(n < matrix_.rows ? matrix_.scales_NG[n * matrix_.groups + known] : 0.0F);
      corrections.push_back(-128 * sums[r]);
    }
  }

  const SparseMatrix& matrix_;
  Kind kind_;
  bool masked_;
  int64_t width_, units_ = 0, group_units_ = 0;
  std::vector<Cell> cells_;
};

class StripsPacking : public Packing {
 public:
  StripsPacking(const SparseMatrix& matrix, Isa isa, bool masked)
      : kind_(matrix.values),
        kernels_(strip_kernels(isa)),
        tiles_(masked ? tile_kernels(isa, kind_) : nullptr),
        masked_(masked),
        rows_(matrix.rows),
        columns_(matrix.columns),
        strips_(ceil_div(matrix.rows, kLanes)) {
    if (kind_ == Kind::kInt4 && !masked) kind_ = Kind::kInt8;  // whole vectors hold bytes
    Packer packer(matrix, kind_, masked);
    for (int64_t strip = 0; strip < strips_; ++strip) packer.pack_strip(strip);
    packer.segment_offsets.push_back(static_cast<int64_t>(packer.segments.size()));
    take(packer);
  }

  size_t bytes() const override {
    return values_.bytes() + masks_.bytes() + vector_units_.bytes() + segments_.bytes() + scales_.bytes() +
           corrections_.bytes();
  }

  void multiply(const Call& call, const Parallel& parallel) const override {
    if (call.tokens == 0 || rows_ == 0) return;
    const bool tiled = tiles_ != nullptr && call.tokens >= tiles_->least_tokens;
    const int64_t rounded = round_up(call.tokens, tiled ? kTileRows : call.tokens == 1 ? 1 : kTokensRoundedTo);
    const size_t words = static_cast<size_t>(rounded * units_);
    auto* memory = reinterpret_cast<uint32_t*>(
        scratch(Scratch::kActivations, (words + static_cast<size_t>(rounded)) * sizeof(uint32_t)));
    auto* token_scales_M = reinterpret_cast<float*>(memory + words);
    pack_tokens(call, rounded, tiled, memory, token_scales_M, parallel);
    const bool integer = kind_ == Kind::kInt8 || kind_ == Kind::kInt4;
    const StripFinish finish{integer ? token_scales_M : nullptr, call.bias_N, call.y_MN};
    const int64_t tasks = ceil_div(strips_, kStripsPerTask), groups = ceil_div(call.tokens, kStripTokens);
    parallel(static_cast<size_t>(tasks * groups), [&](size_t task) {
      const int64_t token = static_cast<int64_t>(task) / tasks * kStripTokens;
      const int64_t first = static_cast<int64_t>(task) % tasks * kStripsPerTask;
      const int64_t last = std::min(strips_, first + kStripsPerTask);
      const int64_t count = std::min(kStripTokens, call.tokens - token);
      tiled ? multiply_tiled(first, last, memory, token, count, finish)
            : multiply_vectors(first, last, memory, token, count, finish);
    });
  }

 private:
  StripsView view() const {
    return {kind_,
            rows_,
            units_,
            values_.as<uint8_t>(),
            value_offsets_.data(),
            masked_ ? masks_.as<uint8_t>() : nullptr,
            vector_units_.as<uint32_t>(),
            vector_offsets_.data(),
            segments_.as<Segment>(),
            segment_offsets_.data(),
            scales_.as<float>(),
            corrections_.as<int32_t>()};
  }

  void take(Packer& packer) {
    units_ = packer.units();
    packer.values.resize(packer.values.size() + kVectorBytes);  // kernels load whole vectors
    values_ = buffer_of(packer.values);
    masks_ = buffer_of(packer.masks);
    vector_units_ = buffer_of(packer.vector_units);
    segments_ = buffer_of(packer.segments);
    scales_ = buffer_of(packer.scales);
    corrections_ = buffer_of(packer.corrections);
    value_offsets_ = std::move(packer.value_offsets);
    vector_offsets_ = std::move(packer.vector_offsets);
    segment_offsets_ = std::move(packer.segment_offsets);
  }

  // Words of X, token by token or in tile order; tokens past the last are 0.
  void pack_tokens(const Call& call, int64_t rounded, bool tiled, uint32_t* words_MU, float* token_scales_M,
                   const Parallel& parallel) const {
    const auto pack_token = tiled ? tiles_->pack_token : kernels_->pack_token;
    parallel(static_cast<size_t>(ceil_div(rounded, kTokensPerTask)), [&](size_t task) {
      const int64_t first = static_cast<int64_t>(task) * kTokensPerTask;
      for (int64_t m = first; m < std::min(rounded, first + kTokensPerTask); ++m) {
        uint32_t* words_U = words_MU + m * units_;
        if (tiled) words_U = reinterpret_cast<uint32_t*>(scratch(Scratch::kToken, units_ * sizeof(uint32_t)));
        if (m < call.tokens) {
          token_scales_M[m] =
              pack_token(kind_, call.x_MK + m * columns_, columns_, units_, call.activation_scale.value_or(0), words_U);
        } else {
          std::memset(words_U, 0, static_cast<size_t>(units_) * sizeof(uint32_t));
        }
        if (tiled) lay_out_tiles(words_U, m, words_MU);
      }
    });
  }

  // Moves a token's words to its row of the tiles; integers become signed.
  void lay_out_tiles(const uint32_t* words_U, int64_t m, uint32_t* tiles_MU) const {
    const uint32_t flip = kind_ == Kind::kBfloat16 ? 0 : 0x80808080U;
    uint32_t* row = tiles_MU + m / kTileRows * kTileRows * units_ + m % kTileRows * kTileUnits;
    for (int64_t u = 0; u < units_; ++u) {
      row[u / kTileUnits * kTileRows * kTileUnits + u % kTileUnits] = words_U[u] ^ flip;
    }
  }

  void multiply_vectors(int64_t first, int64_t last, const uint32_t* words_MU, int64_t token, int64_t count,
                        const StripFinish& finish) const {
    const StripsView weight = view();
    for (int64_t strip = first; strip < last; ++strip) {
      kernels_->strip(weight, strip, words_MU, token, count, finish);
    }
  }

  void multiply_tiled(int64_t first, int64_t last, const uint32_t* tiles_MU, int64_t token, int64_t count,
                      const StripFinish& finish) const {
    const StripsView weight = view();
    tiles_->begin();
    for (int64_t strip = first; strip < last; strip += 2) {
      tiles_->strips(weight, strip, std::min<int64_t>(2, last - strip), tiles_MU, token, count, finish);
    }
    tiles_->end();
  }

  Kind kind_;
  const StripKernels* kernels_;
  const TileKernels* tiles_;
  bool masked_;
  int64_t rows_, columns_, strips_, units_ = 0;
  Buffer values_, masks_, vector_units_, segments_, scales_, corrections_;
  std::vector<int64_t> value_offsets_, vector_offsets_, segment_offsets_;
};

}  // namespace

std::unique_ptr<Packing> pack_tile(const SparseMatrix& matrix, Isa isa) {
  return std::make_unique<StripsPacking>(matrix, isa, true);
}

std::unique_ptr<Packing> pack_panel(const SparseMatrix& matrix, Isa isa) {
  return std::make_unique<StripsPacking>(matrix, isa, false);
}

}  // namespace hebbline
