#include "linear/csr.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <vector>

#include "linear/activations.h"
#include "linear/packing.h"
#include "platform/arithmetic.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kNarrowestBlock = 128;
// Fewer entries of a row in a block do not pay for its sums' way in and out. Measured on Zen 4: at 5% one token is 10%
// faster with 48 than with 24, at 10% 64 tokens are 12% slower, as their X^T is read from further away.
constexpr double kEntriesPerSegment = 48, kEntriesPerDenseSegment = 24, kDense = 0.075;
constexpr int64_t kColumnsPerTask = 512;
constexpr int64_t kStripsPerTask = 2;
constexpr int64_t kFloatTokens = 16;  // up to here floats are as fast as pairs of bfloat16

const CsrKernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (uses_avx512(isa) && cpu_features().avx512_bf16) return avx512bf16::kCsrKernels;
#endif
  return HEBBLINE_CHOOSE(isa, kCsrKernels);
}

// A link before it is stored: the column and the payload's bits.
struct Entry {
  int32_t column;
  uint32_t bits;
};

class CsrPacking : public Packing {
 public:
  CsrPacking(const SparseMatrix& matrix, Isa isa) : kernels_(kernels_of(isa)), values_(matrix.values) {
    payload_ = matrix.fits_bfloat16() ? Payload::kBfloat16 : Payload::kFloat32;
    rows_ = matrix.rows;
    columns_ = matrix.columns;
    strips_ = ceil_div(rows_, kStripRows);
    row_scales_N_ = matrix.row_scales();
    collect(matrix);
    width_ = block_width();
    blocks_ = ceil_div(columns_, width_);
    fill();
  }

  size_t bytes() const override {
    return places_Z_.bytes() + payload_Z_.bytes() + counts_SBR_.bytes() + rows_SBR_.bytes() +
           strip_offsets_S_.size() * sizeof(int64_t);
  }

  void multiply(const Call& call, const Parallel& parallel) const override {
    if (call.tokens == 0 || rows_ == 0) return;
    const RoundedActivations rounded = round_activations(call, columns_, values_, parallel);
    const int64_t tiles = ceil_div(call.tokens, kernels_.tile_tokens);
    const float* data_KW = rounded.x_MK;
    if (tile_of(0, call.tokens).width > 1) data_KW = transposed(rounded.x_MK, call.tokens, tiles, parallel);
    const Finish finish{row_scales_N_.empty() ? nullptr : row_scales_N_.data(), rounded.scales_M, call.bias_N,
                        call.y_MN};
    const CsrView weight = view();
    const int64_t tasks = ceil_div(strips_, kStripsPerTask);
    parallel(static_cast<size_t>(tasks * tiles), [&](size_t task) {
      CsrTile tile = tile_of(static_cast<int64_t>(task) / tasks, call.tokens);
      tile.data_KW = data_KW + tile.token * columns_;
      const int64_t first = static_cast<int64_t>(task) % tasks * kStripsPerTask;
      for (int64_t strip = first; strip < std::min(strips_, first + kStripsPerTask); ++strip) {
        kernels_.strip(weight, strip, tile, finish);
      }
    });
  }

 private:
  CsrView view() const {
    return {rows_,
            blocks_,
            width_,
            payload_,
            places_Z_.as<uint16_t>(),
            payload_Z_.as(),
            counts_SBR_.as<uint16_t>(),
            rows_SBR_.as<uint8_t>(),
            strip_offsets_S_.data()};
  }

  // Tile `index` of a call of `tokens` tokens, which alone decide its form.
  CsrTile tile_of(int64_t index, int64_t tokens) const {
    CsrTile tile{};
    tile.token = index * kernels_.tile_tokens;
    tile.count = std::min(kernels_.tile_tokens, tokens - tile.token);
    tile.halves = kernels_.halves && payload_ == Payload::kBfloat16 && tile.count > kFloatTokens;
    tile.width = ceil_div(tile.count, tile.halves ? 32 : 16) * (tile.halves ? 32 : 16);
    if (tile.count <= 8) tile.width = tile.count <= 4 ? 4 : 8;
    if (tokens == 1) tile.width = 1;
    return tile;
  }

  int64_t block_width() const {
    const double cells = static_cast<double>(rows_) * static_cast<double>(columns_);
    const double density = static_cast<double>(entries_.size()) / std::max(cells, 1.0);
    int64_t width = kNarrowestBlock;
    const double wanted = density < kDense ? kEntriesPerSegment : kEntriesPerDenseSegment;
    while (width < kWidestBlock && static_cast<double>(width) * density < wanted) width *= 2;
    return width;
  }

  // The entries of all rows, in order of rows and columns.
  void collect(const SparseMatrix& matrix) {
    entries_.reserve(static_cast<size_t>(matrix.links()));
    offsets_N_.push_back(0);
    for (int64_t n = 0; n < rows_; ++n) {
      for (int64_t z = matrix.row_offsets[n]; z < matrix.row_offsets[n + 1]; ++z) {
        entries_.push_back({matrix.columns_Z[z], std::bit_cast<uint32_t>(matrix.float_weight(n, z))});
      }
      offsets_N_.push_back(static_cast<int64_t>(entries_.size()));
    }
  }

  // Puts the entries in the order of the packing.
  void fill() {
    const bool halves = payload_ == Payload::kBfloat16;
    places_Z_ = Buffer::lasting(entries_.size() * sizeof(uint16_t));
    payload_Z_ = Buffer::lasting(entries_.size() * (halves ? sizeof(uint16_t) : sizeof(uint32_t)));
    counts_SBR_ = Buffer::lasting(static_cast<size_t>(strips_ * blocks_ * kStripRows) * sizeof(uint16_t));
    rows_SBR_ = Buffer::lasting(static_cast<size_t>(strips_ * blocks_ * kStripRows));
    std::vector<int64_t> next_N(offsets_N_.begin(), offsets_N_.end());
    int64_t place = 0;
    for (int64_t strip = 0; strip < strips_; ++strip) {
      strip_offsets_S_.push_back(place);
      for (int64_t block = 0; block < blocks_; ++block) place = fill_block(strip, block, next_N, place);
    }
    std::vector<Entry>().swap(entries_);  // assigning an empty list would keep the memory
    std::vector<int64_t>().swap(offsets_N_);
  }

  // The entries of a row in a block.
  struct Segment {
    int64_t row, first, last;
  };

  // Writes a strip's entries of a block from `place` on, and moves `next_N` past them; returns the place after them.
  int64_t fill_block(int64_t strip, int64_t block, std::vector<int64_t>& next_N, int64_t place) {
    const int64_t start = block * width_, first_row = strip * kStripRows;
    std::vector<Segment> segments;
    for (int64_t n = first_row; n < std::min(rows_, first_row + kStripRows); ++n) {
      const int64_t first = next_N[n];
      while (next_N[n] < offsets_N_[n + 1] && entries_[next_N[n]].column < start + width_) ++next_N[n];
      segments.push_back({n - first_row, first, next_N[n]});
    }
    std::ranges::stable_sort(segments, std::greater(),
                             [](const Segment& segment) { return segment.last - segment.first; });
    int64_t at = (strip * blocks_ + block) * kStripRows;
    for (const Segment& segment : segments) {
      counts_SBR_.as<uint16_t>()[at] = static_cast<uint16_t>(segment.last - segment.first);
      rows_SBR_.as<uint8_t>()[at++] = static_cast<uint8_t>(segment.row);
      for (int64_t z = segment.first; z < segment.last; ++z) fill_entry(place++, entries_[z], start);
    }
    return place;
  }

  void fill_entry(int64_t place, Entry entry, int64_t start) {
    places_Z_.as<uint16_t>()[place] = static_cast<uint16_t>(entry.column - start);
    if (payload_ == Payload::kBfloat16) {
      payload_Z_.as<uint16_t>()[place] = static_cast<uint16_t>(entry.bits >> 16);
    } else {
      payload_Z_.as<uint32_t>()[place] = entry.bits;
    }
  }

  const float* transposed(const float* x_MK, int64_t tokens, int64_t tiles, const Parallel& parallel) const {
    const auto bytes = static_cast<size_t>(columns_ * (ceil_div(tokens, 32) * 32)) * sizeof(float);
    auto* data_KW = reinterpret_cast<float*>(scratch(Scratch::kTransposed, bytes));
    const int64_t tasks = std::max<int64_t>(1, ceil_div(columns_, kColumnsPerTask));
    parallel(static_cast<size_t>(tasks * tiles), [&](size_t task) {
      const CsrTile tile = tile_of(static_cast<int64_t>(task) / tasks, tokens);
      const int64_t first = static_cast<int64_t>(task) % tasks * kColumnsPerTask;
      kernels_.transpose(x_MK, columns_, first, std::min(columns_, first + kColumnsPerTask), tile,
                         data_KW + tile.token * columns_);
    });
    return data_KW;
  }

  const CsrKernels& kernels_;
  ValueType values_;
  Payload payload_;
  int64_t rows_ = 0, columns_ = 0, width_ = 0, blocks_ = 0, strips_ = 0;
  std::vector<Entry> entries_;  // while packing
  std::vector<int64_t> offsets_N_;
  Buffer places_Z_, payload_Z_, counts_SBR_, rows_SBR_;
  std::vector<int64_t> strip_offsets_S_;
  std::vector<float> row_scales_N_;
};

}  // namespace

std::unique_ptr<Packing> pack_csr(const SparseMatrix& matrix, Isa isa) {
  return std::make_unique<CsrPacking>(matrix, isa);
}

}  // namespace hebbline
