#include "linear/quad.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "linear/packing.h"
#include "linear/strips.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kQuad = 4;
constexpr int64_t kRowsPerTask = 64;
constexpr int64_t kRowsPerCall = 16;
constexpr int64_t kTokensPerTask = 8;
constexpr int64_t kTileTokens = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t tile_width(int64_t tokens) { return tokens <= 8 ? 8 : std::min(kTileTokens, ceil_div(tokens, 16) * 16); }

class QuadPacking : public Packing {
 public:
  explicit QuadPacking(const SparseMatrix& matrix)
      : rows_(matrix.rows),
        columns_(matrix.columns),
        units_(ceil_div(ceil_div(matrix.columns, kQuad), kTileUnits) * kTileUnits),
        scales_N_(matrix.scales_NG) {
    row_offsets_.push_back(0);
    for (int64_t n = 0; n < rows_; ++n) append_row(matrix, n);
  }

  size_t bytes() const override { return quads_Z_.size() * 2 + words_Z_.size() * 4 + row_offsets_.size() * 8; }

  void multiply(const Call& call, const Parallel& parallel) const override {
    if (call.tokens == 0 || rows_ == 0) return;
    const int64_t tiles = ceil_div(call.tokens, kTileTokens);
    const int64_t padded = ceil_div(call.tokens, 16) * 16;
    auto* words_MQ = reinterpret_cast<uint32_t*>(
        scratch(Scratch::kActivations, static_cast<size_t>(call.tokens * (units_ + 1)) * sizeof(uint32_t)));
    auto* token_scales_M = reinterpret_cast<float*>(words_MQ + call.tokens * units_);
    auto* tiles_QW = reinterpret_cast<uint32_t*>(
        scratch(Scratch::kTransposed, static_cast<size_t>(padded * units_) * sizeof(uint32_t)));
    pack_tokens(call, words_MQ, token_scales_M, parallel);
    parallel(static_cast<size_t>(tiles), [&](size_t tile) {
      const int64_t token = static_cast<int64_t>(tile) * kTileTokens,
                    count = std::min(kTileTokens, call.tokens - token);
      avx512::transpose_words(words_MQ + token * units_, units_, count, units_, tile_width(count),
                              tiles_QW + token * units_);
    });
    const QuadFinish finish{token_scales_M, call.bias_N, call.y_MN};
    const int64_t tasks = ceil_div(rows_, kRowsPerTask);
    parallel(static_cast<size_t>(tasks * tiles), [&](size_t task) {
      const int64_t token = static_cast<int64_t>(task) / tasks * kTileTokens;
      const int64_t first = static_cast<int64_t>(task) % tasks * kRowsPerTask;
      multiply_rows(first, std::min(rows_, first + kRowsPerTask), tiles_QW + token * units_, token,
                    std::min(kTileTokens, call.tokens - token), finish);
    });
  }

 private:
  void append_row(const SparseMatrix& matrix, int64_t n) {
    int32_t sum = 0;
    int64_t last_quad = -1;
    for (int64_t z = matrix.row_offsets[n]; z < matrix.row_offsets[n + 1]; ++z) {
      const int64_t quad = matrix.columns_Z[z] / kQuad;
      if (quad != last_quad) {
        quads_Z_.push_back(static_cast<uint16_t>(quad));
        words_Z_.push_back(0);
        last_quad = quad;
      }
      const auto value = static_cast<int8_t>(matrix.weights_Z[z]);
      words_Z_.back() |= static_cast<uint32_t>(static_cast<uint8_t>(value)) << matrix.columns_Z[z] % kQuad * 8;
      sum += value;
    }
    corrections_N_.push_back(-128 * sum);
    row_offsets_.push_back(static_cast<int64_t>(words_Z_.size()));
  }

  void pack_tokens(const Call& call, uint32_t* words_MQ, float* token_scales_M, const Parallel& parallel) const {
    parallel(static_cast<size_t>(ceil_div(call.tokens, kTokensPerTask)), [&](size_t task) {
      const int64_t first = static_cast<int64_t>(task) * kTokensPerTask;
      for (int64_t m = first; m < std::min(call.tokens, first + kTokensPerTask); ++m) {
        token_scales_M[m] = avx512::kStripKernels.pack_token(Kind::kInt8, call.x_MK + m * columns_, columns_, units_,
                                                             call.activation_scale.value_or(0), words_MQ + m * units_);
      }
    });
  }

  void multiply_rows(int64_t first, int64_t last, const uint32_t* tile_QW, int64_t token, int64_t count,
                     const QuadFinish& finish) const {
    const QuadView weight{rows_,           row_offsets_.data(),   quads_Z_.data(),
                          words_Z_.data(), corrections_N_.data(), scales_N_.data()};
    for (int64_t n = first; n < last; n += kRowsPerCall) {
      avx512::multiply_quads(weight, n, std::min(last, n + kRowsPerCall), tile_QW, tile_width(count), token, count,
                             finish);
    }
  }

  int64_t rows_, columns_, units_;
  std::vector<float> scales_N_;
  std::vector<int64_t> row_offsets_;
  std::vector<uint16_t> quads_Z_;
  std::vector<uint32_t> words_Z_;
  std::vector<int32_t> corrections_N_;
};

}  // namespace

std::unique_ptr<Packing> pack_quad(const SparseMatrix& matrix) { return std::make_unique<QuadPacking>(matrix); }

}  // namespace hebbline
