#include "linear/quad.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "linear/bytes.h"
#include "linear/packing.h"
#include "platform/arithmetic.h"
#include "platform/memory.h"

namespace hebbline {

namespace {

constexpr int64_t kNarrowestBlock = 256;
constexpr double kLinksPerSegment = 100;  // fewer of a row in a block do not pay for its sums' way in and out
constexpr int64_t kBlockStep = 16;        // columns
constexpr int64_t kStripsPerTask = 2;

const QuadKernels& quad_kernels(Isa isa) {
#if defined(__x86_64__)
  return isa == Isa::kAvx2Vnni ? avx2vnni::kQuadKernels : avx2::kQuadKernels;
#else
  return isa == Isa::kNeonI8mm ? neoni8mm::kQuadKernels : neondot::kQuadKernels;
#endif
}

const ByteKernels& byte_kernels() {
#if defined(__x86_64__)
  return avx2::kByteKernels;
#else
  return neondot::kByteKernels;
#endif
}

class QuadPacking : public Packing {
 public:
  QuadPacking(const SparseMatrix& matrix, Isa isa)
      : kernels_(quad_kernels(isa)),
        rows_(matrix.rows),
        columns_(matrix.columns),
        strips_(ceil_div(matrix.rows, kStripRows)),
        width_(block_width(matrix)),
        blocks_(std::max<int64_t>(1, ceil_div(columns_, width_))),
        row_scales_N_(matrix.row_scales()) {
    std::vector<int64_t> next_N(matrix.row_offsets.begin(), matrix.row_offsets.end());
    for (int64_t strip = 0; strip < strips_; ++strip) {
      strip_offsets_S_.push_back(static_cast<int64_t>(magnitudes_.size()) / 4);
      for (int64_t block = 0; block < blocks_; ++block) pack_block(matrix, strip, block, next_N);
    }
    keep();
  }

  size_t bytes() const override {
    return places_Q4_.bytes() + magnitudes_Q4_.bytes() + counts_SBR_.bytes() + rows_SBR_.bytes() +
           negative_SBR_.bytes() + scales_SBR_.bytes();
  }

  void multiply(const Call& call, const Parallel& parallel) const override {
    if (call.tokens == 0 || rows_ == 0) return;
    const ByteActivations x = quantise_tokens(byte_kernels(), call, columns_, blocks_ * width_, false, parallel);
    const int64_t tiles = ceil_div(call.tokens, kQuadTokens);
    const int8_t* data = transposed(x, call.tokens, tiles, parallel);
    const Finish finish{row_scales_N_.data(), x.scales_M, call.bias_N, call.y_MN};
    const QuadView weight = view();
    const int64_t tasks = ceil_div(strips_, kStripsPerTask);
    parallel(static_cast<size_t>(tasks * tiles), [&](size_t task) {
      const QuadTile tile = tile_of(static_cast<int64_t>(task) / tasks, call.tokens, data);
      const int64_t first = static_cast<int64_t>(task) % tasks * kStripsPerTask;
      for (int64_t strip = first; strip < std::min(strips_, first + kStripsPerTask); ++strip) {
        kernels_.strip(weight, strip, tile, finish);
      }
    });
  }

 private:
  // A group of scales, or as many columns as give a row enough links.
  static int64_t block_width(const SparseMatrix& matrix) {
    if (matrix.groups > 1) return matrix.group_width;
    int64_t width = kNarrowestBlock;
    while (width < kWidestQuadBlock && static_cast<double>(width) * matrix.density() < kLinksPerSegment) width *= 2;
    return std::min(width, std::max<int64_t>(1, ceil_div(matrix.columns, kBlockStep)) * kBlockStep);
  }

  // The links of a row in a block.
  struct Segment {
    int64_t row, first, last;
    int64_t fours() const { return ceil_div(last - first, 4); }
  };

  void pack_block(const SparseMatrix& matrix, int64_t strip, int64_t block, std::vector<int64_t>& next_N) {
    const int64_t start = block * width_, first_row = strip * kStripRows;
    std::vector<Segment> segments;
    for (int64_t n = first_row; n < std::min(rows_, first_row + kStripRows); ++n) {
      const int64_t first = next_N[n];
      while (next_N[n] < matrix.row_offsets[n + 1] && matrix.columns_Z[next_N[n]] < start + width_) ++next_N[n];
      segments.push_back({n - first_row, first, next_N[n]});
    }
    std::ranges::stable_sort(segments, std::greater(), &Segment::fours);
    segments.resize(kStripRows, Segment{0, 0, 0});
    for (const Segment& segment : segments) {
      counts_.push_back(static_cast<uint16_t>(segment.fours()));
      row_numbers_.push_back(static_cast<uint8_t>(segment.row));
      if (matrix.groups > 1) scales_.push_back(matrix.scales_NG[(first_row + segment.row) * matrix.groups + block]);
      float negative = 0;
      for (int64_t z = segment.first; z < segment.last; ++z) {
        append(matrix.columns_Z[z] - start, matrix.weights_Z[z]);
        negative -= std::min(matrix.weights_Z[z], 0.0F);
      }
      negative_.push_back(static_cast<int32_t>(negative));
      while (magnitudes_.size() % 8 != 0) append(0, 0);
    }
  }

  void append(int64_t column, float weight) {
    places_.push_back(static_cast<uint16_t>((column + (weight < 0 ? width_ : 0)) * kQuadPlaceStep));
    magnitudes_.push_back(static_cast<uint8_t>(std::fabs(weight)));
  }

  // From lists that grew to memory that stays.
  void keep() {
    places_Q4_ = buffer_of(places_);
    magnitudes_Q4_ = buffer_of(magnitudes_);
    counts_SBR_ = buffer_of(counts_);
    rows_SBR_ = buffer_of(row_numbers_);
    negative_SBR_ = buffer_of(negative_);
    scales_SBR_ = buffer_of(scales_);
    std::vector<uint16_t>().swap(places_);
    std::vector<uint8_t>().swap(magnitudes_);
    std::vector<uint16_t>().swap(counts_);
    std::vector<uint8_t>().swap(row_numbers_);
    std::vector<int32_t>().swap(negative_);
    std::vector<float>().swap(scales_);
  }

  QuadView view() const {
    return {rows_,
            blocks_,
            width_,
            places_Q4_.as<uint16_t>(),
            magnitudes_Q4_.as<uint8_t>(),
            counts_SBR_.as<uint16_t>(),
            rows_SBR_.as<uint8_t>(),
            negative_SBR_.as<int32_t>(),
            scales_SBR_.bytes() > 0 ? scales_SBR_.as<float>() : nullptr,
            strip_offsets_S_.data()};
  }

  // Tile `index` of a call of `tokens` tokens. Those before it are whole.
  QuadTile tile_of(int64_t index, int64_t tokens, const int8_t* data) const {
    const int64_t token = index * kQuadTokens, count = std::min(kQuadTokens, tokens - token);
    int64_t width = 8;
    while (width < count) width *= 2;
    return {data + token * 2 * blocks_ * width_, width, token, count};
  }

  const int8_t* transposed(const ByteActivations& x, int64_t tokens, int64_t tiles, const Parallel& parallel) const {
    const int64_t bytes = tiles * kQuadTokens * 2 * blocks_ * width_ + kQuadPadding;
    auto* data = reinterpret_cast<int8_t*>(scratch(Scratch::kTransposed, static_cast<size_t>(bytes)));
    parallel(static_cast<size_t>(blocks_ * tiles), [&](size_t task) {
      const QuadTile tile = tile_of(static_cast<int64_t>(task) / blocks_, tokens, data);
      kernels_.transpose(x.x_MK, x.stride, x.x_MK + tokens * x.stride, static_cast<int64_t>(task) % blocks_, width_,
                         tile, data + tile.token * 2 * blocks_ * width_);
    });
    return data;
  }

  const QuadKernels& kernels_;
  int64_t rows_, columns_, strips_, width_, blocks_;
  std::vector<float> row_scales_N_;
  std::vector<uint16_t> places_, counts_;  // while packing
  std::vector<uint8_t> magnitudes_, row_numbers_;
  std::vector<int32_t> negative_;
  std::vector<float> scales_;
  Buffer places_Q4_, magnitudes_Q4_, counts_SBR_, rows_SBR_, negative_SBR_, scales_SBR_;
  std::vector<int64_t> strip_offsets_S_;
};

}  // namespace

std::unique_ptr<Packing> pack_quad(const SparseMatrix& matrix, Isa isa) {
  return std::make_unique<QuadPacking>(matrix, isa);
}

}  // namespace hebbline
