#include "linear/csr.h"

#include <algorithm>
#include <bit>

#include "linear/activations.h"
#include "linear/packing.h"

namespace hebbline {
namespace {

constexpr int64_t kWidestBlock = 1 << 15;  // places are uint16
constexpr int64_t kNarrowestBlock = 128;
constexpr double kLinksPerSegment = 12;  // fewer links of a row in a block do not pay for its sums' way in and out
constexpr int64_t kColumnsPerTask = 512;
constexpr int64_t kStripsPerTask = 2;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t block_width(const SparseMatrix& matrix) {
  const double wanted = kLinksPerSegment / std::max(matrix.density(), 1e-6);
  int64_t width = kNarrowestBlock;
  while (width < kWidestBlock && static_cast<double>(width) < wanted) width *= 2;
  return width;
}

const CsrKernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512 || isa == Isa::kAmx) return avx512::kCsrKernels;
  if (isa == Isa::kAvx2) return avx2::kCsrKernels;
#endif
  static_cast<void>(isa);
  return scalar::kCsrKernels;
}

// Widths of a tile: one token, a small batch, or whole vectors of 16.
int64_t tile_width(int64_t tokens) {
  if (tokens <= 1) return 1;
  return tokens <= 8 ? 8 : std::min(kTileTokens, ceil_div(tokens, 16) * 16);
}

class CsrPacking : public Packing {
 public:
  CsrPacking(const SparseMatrix& matrix, Isa isa) : kernels_(kernels_of(isa)), values_(matrix.values) {
    payload_ = matrix.fits_bfloat16() ? Payload::kBfloat16 : Payload::kFloat32;
    rows_ = matrix.rows;
    columns_ = matrix.columns;
    width_ = block_width(matrix);
    blocks_ = ceil_div(columns_, width_);
    strips_ = ceil_div(rows_, kStripRows);
    row_scales_N_ = matrix.row_scales();
    fill(matrix);
  }

  size_t bytes() const override {
    return places_Z_.bytes() + payload_Z_.bytes() + counts_SBR_.bytes() + strip_offsets_S_.size() * sizeof(int64_t);
  }

  void multiply(const Call& call, const Parallel& parallel) const override {
    if (call.tokens == 0 || rows_ == 0) return;
    const RoundedActivations rounded = round_activations(call, columns_, values_, parallel);
    const int64_t tiles = ceil_div(call.tokens, kTileTokens);
    const float* tiles_KW = rounded.x_MK;
    if (call.tokens > 1) tiles_KW = transposed(rounded.x_MK, call.tokens, tiles, parallel);
    const Finish finish{matrix_scales(), rounded.scales_M, call.bias_N, call.y_MN};
    const CsrView weight = view();
    const int64_t tasks = ceil_div(strips_, kStripsPerTask);
    parallel(static_cast<size_t>(tasks * tiles), [&](size_t task) {
      const int64_t tile = static_cast<int64_t>(task) / tasks, first = static_cast<int64_t>(task) % tasks;
      const int64_t token = tile * kTileTokens, count = std::min(kTileTokens, call.tokens - token);
      const int64_t last = std::min(strips_, (first + 1) * kStripsPerTask);
      for (int64_t strip = first * kStripsPerTask; strip < last; ++strip) {
        kernels_.strip(weight, payload_, strip, tiles_KW + token * columns_, tile_width(count), token, count, finish);
      }
    });
  }

 private:
  const float* matrix_scales() const { return row_scales_N_.empty() ? nullptr : row_scales_N_.data(); }

  CsrView view() const {
    return {rows_,
            columns_,
            strips_,
            blocks_,
            width_,
            places_Z_.as<uint16_t>(),
            payload_Z_.as(),
            counts_SBR_.as<uint16_t>(),
            strip_offsets_S_.data()};
  }

  void fill(const SparseMatrix& matrix) {
    const auto links = static_cast<size_t>(matrix.links());
    places_Z_ = Buffer(links * sizeof(uint16_t));
    payload_Z_ = Buffer(links * (payload_ == Payload::kBfloat16 ? 2 : 4));
    counts_SBR_ = Buffer(static_cast<size_t>(strips_ * blocks_ * kStripRows) * sizeof(uint16_t));
    strip_offsets_S_.reserve(static_cast<size_t>(strips_));
    std::vector<int64_t> next_N(matrix.row_offsets.begin(), matrix.row_offsets.end());
    int64_t place = 0;
    for (int64_t strip = 0; strip < strips_; ++strip) {
      strip_offsets_S_.push_back(place);
      for (int64_t block = 0; block < blocks_; ++block) {
        for (int64_t n = strip * kStripRows; n < std::min(rows_, (strip + 1) * kStripRows); ++n) {
          const int64_t count = fill_segment(matrix, n, block, next_N[n], place);
          counts_SBR_.as<uint16_t>()[(strip * blocks_ + block) * kStripRows + n % kStripRows] =
              static_cast<uint16_t>(count);
          place += count;
        }
      }
    }
  }

  // Writes the links of row n in a block; moves `next` past them and returns their number.
  int64_t fill_segment(const SparseMatrix& matrix, int64_t n, int64_t block, int64_t& next, int64_t place) {
    const int64_t first = next, start = block * width_;
    for (; next < matrix.row_offsets[n + 1] && matrix.columns_Z[next] < start + width_; ++next, ++place) {
      places_Z_.as<uint16_t>()[place] = static_cast<uint16_t>(matrix.columns_Z[next] - start);
      const float value = matrix.float_weight(n, next);
      if (payload_ == Payload::kFloat32) payload_Z_.as<float>()[place] = value;
      if (payload_ == Payload::kBfloat16) {
        payload_Z_.as<uint16_t>()[place] = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
      }
    }
    return next - first;
  }

  const float* transposed(const float* x_MK, int64_t tokens, int64_t tiles, const Parallel& parallel) const {
    const auto bytes = static_cast<size_t>(columns_ * (ceil_div(tokens, 16) * 16)) * sizeof(float);
    auto* tiles_KW = reinterpret_cast<float*>(scratch(Scratch::kTransposed, bytes));
    const int64_t tasks = std::max<int64_t>(1, ceil_div(columns_, kColumnsPerTask));
    parallel(static_cast<size_t>(tasks * tiles), [&](size_t task) {
      const int64_t tile = static_cast<int64_t>(task) / tasks, first = static_cast<int64_t>(task) % tasks;
      const int64_t token = tile * kTileTokens, count = std::min(kTileTokens, tokens - token);
      kernels_.transpose(x_MK, columns_, token, count, tile_width(count), first * kColumnsPerTask,
                         std::min(columns_, (first + 1) * kColumnsPerTask), tiles_KW + token * columns_);
    });
    return tiles_KW;
  }

  const CsrKernels& kernels_;
  ValueType values_;
  Payload payload_;
  int64_t rows_ = 0, columns_ = 0, strips_ = 0, blocks_ = 0, width_ = 0;
  Buffer places_Z_, payload_Z_, counts_SBR_;
  std::vector<int64_t> strip_offsets_S_;
  std::vector<float> row_scales_N_;
};

}  // namespace

std::unique_ptr<Packing> pack_csr(const SparseMatrix& matrix, Isa isa) {
  return std::make_unique<CsrPacking>(matrix, isa);
}

}  // namespace hebbline
