// What a layer that holds its links alone trains with: its output, the gradients of its input, of its links and of its
// bias, and a step of Adam over a vector of links.
//
// Sums are formed in the same order on any number of threads.
//
// Legend: N outputs, K inputs, Z links, T tokens, R rows of a graph and C its columns; W the width of a tile of tokens.
#pragma once

#include <cstdint>

#include "platform/variants.h"

namespace hebbline {

// Links by rows: those of row r are starts_R[r] up to starts_R[r + 1], in rising order of their columns.
struct LinkGraph {
  int64_t rows, columns;
  const int32_t* starts_R;
  const int32_t* columns_Z;

  int64_t links() const { return starts_R[rows]; }
};

// Activations [T, features]: the value of a feature for a token is data[token * token_stride + feature *
// feature_stride], and one of the strides is 1.
struct Activations {
  float* data = nullptr;
  int64_t token_stride = 0, feature_stride = 0;
};

// y = x W^T + bias, for a graph by rows, N x K. `bias_N` may be null.
void links_forward(const LinkGraph& graph, const float* values_Z, const float* bias_N, const Activations& x,
                   int64_t tokens, const Activations& y, Isa isa, int threads);

// What `links_backward` forms of the gradient of y; what is null is left out.
struct LinkGradients {
  Activations x;  // [T, K]
  float* values_Z = nullptr;
  float* bias_N = nullptr;
};

// `by_column` has the same links as `graph`, by columns, K x N; its z-th is the graph's link places_Z[z].
void links_backward(const LinkGraph& graph, const LinkGraph& by_column, const int32_t* places_Z, const float* values_Z,
                    const Activations& x, const Activations& y_gradient, int64_t tokens, const LinkGradients& found,
                    Isa isa, int threads);

// A step of AdamW (Loshchilov and Hutter, 2019) in which every entry counts its own steps, as links that grew later
// have taken fewer (arXiv 2606.00888). Entry a of the tables is for an entry that has taken a steps, the last entry for
// all that have taken more.
struct AdamStep {
  float rate;
  float decay;  // 1 - rate * weight decay
  float beta1, beta2, epsilon;
  int32_t oldest;            // the last entry of the tables
  const float* step_sizes;   // 1 / (1 - beta1^a), less while an entry is young
  const float* corrections;  // 1 / sqrt(1 - beta2^a)
};

// The state of `count` entries; `ages` counts steps, up to `oldest`, and is raised by 1.
void adam_step(float* weights, const float* gradients, float* first, float* second, int32_t* ages, int64_t count,
               const AdamStep& step, Isa isa, int threads);

// Links of a graph in blocks of neighbouring columns, whose part of a tile stays in a near cache. The links of row
// r in block b are cuts[b * rows + r] up to cuts[b * rows + r + next].
struct LinkBlocks {
  int64_t rows, blocks, next;
  const int32_t* cuts;
  const int32_t* columns_Z;
};

// One instruction set's kernels. Tiles are [features, width], whose width is kNarrowestTile times a power of 2, at most
// `widest`.
struct LinkKernels {
  int64_t widest;
  // y_RW = W x_CW + bias. `bias_R` may be null.
  void (*product)(const LinkBlocks& links, const float* values_Z, const float* bias_R, const float* x_CW, int64_t width,
                  float* y_RW);
  // gradient_Z += the products of rows of y_RW and x_CW at the links, summed over the tile.
  void (*gradient)(const LinkBlocks& links, const float* y_RW, const float* x_CW, int64_t width, float* gradient_Z);
  // sums_R += the sums of rows.
  void (*row_sums)(const float* y_RW, int64_t rows, int64_t width, float* sums_R);
  // out[j][i] = in[i][j] for i < rows, j < columns.
  void (*transpose)(const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out, int64_t out_stride);
  // See `adam_step`.
  void (*adam)(float* weights, const float* gradients, float* first, float* second, int32_t* ages, int64_t count,
               const AdamStep& step);
};

HEBBLINE_DECLARE(LinkKernels, kLinkKernels)

constexpr int64_t kNarrowestTile = 16;

}  // namespace hebbline
