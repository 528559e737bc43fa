#include "links/links.h"

#include <algorithm>
#include <vector>

#include "platform/arithmetic.h"
#include "platform/memory.h"
#include "platform/tasks.h"

namespace hebbline {
namespace {

constexpr int64_t kCachedBytes = 64 << 10;  // of a tile: what a block of columns reads
constexpr int64_t kTilesPerCut = 4;         // that a cut must serve
constexpr int64_t kLinksPerCut = 6;         // of a row in a block: with fewer, its sums come and go for little
constexpr int64_t kChunks = 8;              // of tokens, whose gradients are added up one after the other
constexpr int64_t kAdamTask = 1 << 15;      // entries
constexpr int64_t kThreadWork = 1 << 23;    // products that are worth another thread

const LinkKernels& link_kernels(Isa isa) { return HEBBLINE_CHOOSE(isa, kLinkKernels); }

// As many threads as there is work for.
int useful_threads(int64_t links, int64_t tokens, int threads) {
  return static_cast<int>(std::clamp<int64_t>(links * tokens / kThreadWork, 1, threads));
}

// The narrowest width that holds the tokens, or the widest.
int64_t tile_width(const LinkKernels& kernels, int64_t tokens) {
  int64_t width = kNarrowestTile;
  while (width < kernels.widest && width < tokens) width *= 2;
  return width;
}

// A graph, cut into blocks of columns.
class CutGraph {
 public:
  CutGraph(const LinkGraph& graph, int64_t width, int64_t tokens) : graph_(graph) {
    if (tokens < kTilesPerCut * width) return;
    const int64_t cached = kCachedBytes / (width * static_cast<int64_t>(sizeof(float)));
    const int64_t most = graph.links() / std::max<int64_t>(kLinksPerCut * graph.rows, 1);
    blocks_ = std::clamp<int64_t>(most, 1, std::max<int64_t>(ceil_div(graph.columns, cached), 1));
    if (blocks_ > 1) cut(ceil_div(graph.columns, blocks_));
  }

  LinkBlocks blocks() const {
    if (blocks_ == 1) return {graph_.rows, 1, 1, graph_.starts_R, graph_.columns_Z};
    return {graph_.rows, blocks_, graph_.rows, cuts_.data(), graph_.columns_Z};
  }

 private:
  void cut(int64_t columns) {
    cuts_.resize(static_cast<size_t>((blocks_ + 1) * graph_.rows));
    for (int64_t r = 0; r < graph_.rows; ++r) {
      const int32_t* z = graph_.columns_Z + graph_.starts_R[r];
      const int32_t* end = graph_.columns_Z + graph_.starts_R[r + 1];
      for (int64_t b = 0; b <= blocks_; ++b) {
        z = b < blocks_ ? std::lower_bound(z, end, static_cast<int32_t>(b * columns)) : end;
        cuts_[static_cast<size_t>(b * graph_.rows + r)] = static_cast<int32_t>(z - graph_.columns_Z);
      }
    }
  }

  LinkGraph graph_;
  int64_t blocks_ = 1;
  std::vector<int32_t> cuts_;
};

// Tokens [first, first + count) of activations, as a tile.
struct Tile {
  int64_t features, first, count, width;

  // Whether the activations lie in memory as the tile does.
  bool is_part_of(const Activations& x) const {
    return x.token_stride == 1 && x.feature_stride == width && count == width;
  }
  size_t bytes() const { return static_cast<size_t>(features * width) * sizeof(float); }
  float* begin(const Activations& x) const { return x.data + first * x.token_stride; }
};

// The tile [features, width]: a part of x, or a copy in the memory of `slot`, with zeros for tokens that are not there.
const float* read_tile(const LinkKernels& kernels, const Activations& x, const Tile& tile, Scratch slot) {
  if (tile.is_part_of(x)) return tile.begin(x);
  auto* copy = reinterpret_cast<float*>(scratch(slot, tile.bytes()));
  if (x.feature_stride == 1) {
    kernels.transpose(tile.begin(x), x.token_stride, tile.count, tile.features, copy, tile.width);
  } else {
    for (int64_t f = 0; f < tile.features; ++f) {
      std::copy_n(tile.begin(x) + f * x.feature_stride, tile.count, copy + f * tile.width);
    }
  }
  for (int64_t f = 0; f < tile.features && tile.count < tile.width; ++f) {
    std::fill_n(copy + f * tile.width + tile.count, tile.width - tile.count, 0.0F);
  }
  return copy;
}

// Where a tile of y is to be formed: in y itself, or in the memory of `slot`.
float* tile_of(const Activations& y, const Tile& tile, Scratch slot) {
  return tile.is_part_of(y) ? tile.begin(y) : reinterpret_cast<float*>(scratch(slot, tile.bytes()));
}

void write_tile(const LinkKernels& kernels, const float* formed, const Tile& tile, const Activations& y) {
  if (tile.is_part_of(y)) return;
  if (y.feature_stride == 1) {
    kernels.transpose(formed, tile.width, tile.features, tile.count, tile.begin(y), y.token_stride);
    return;
  }
  for (int64_t f = 0; f < tile.features; ++f) {
    std::copy_n(formed + f * tile.width, tile.count, tile.begin(y) + f * y.feature_stride);
  }
}

// What a backward pass reads, in the form that it is done in.
struct BackwardPass {
  const LinkKernels& kernels;
  LinkBlocks links, by_column;
  const float* values_by_column_Z;
  const LinkGraph& graph;
  const Activations &x, &y_gradient;
  int64_t tokens, width;

  // Tile number `index`: writes its part of the gradient of x, and adds to those of links and bias.
  void do_tile(int64_t index, const LinkGradients& found) const {
    const int64_t first = index * width, count = std::min(width, tokens - first);
    const Tile of_y{graph.rows, first, count, width}, of_x{graph.columns, first, count, width};
    const float* y_NW = read_tile(kernels, y_gradient, of_y, Scratch::kTransposed);
    if (found.x.data != nullptr) {
      float* formed = tile_of(found.x, of_x, Scratch::kPart);
      kernels.product(by_column, values_by_column_Z, nullptr, y_NW, width, formed);
      write_tile(kernels, formed, of_x, found.x);
    }
    if (found.values_Z != nullptr) {
      const float* x_KW = read_tile(kernels, x, of_x, Scratch::kActivations);
      kernels.gradient(links, y_NW, x_KW, width, found.values_Z);
    }
    if (found.bias_N != nullptr) kernels.row_sums(y_NW, graph.rows, width, found.bias_N);
  }
};

// Gradients of links and bias of one chunk of tokens.
struct Sums {
  std::vector<float> values_Z, bias_N;
};

void add(const std::vector<float>& part, float* total) {
  for (size_t i = 0; i < part.size(); ++i) total[i] += part[i];
}

// Chunks of tiles, each summed by itself: the bits do not depend on which thread does which.
void do_chunks(const BackwardPass& pass, const LinkGradients& found, int threads) {
  const int64_t tiles = ceil_div(pass.tokens, pass.width),
                tiles_a_chunk = std::max<int64_t>(ceil_div(tiles, kChunks), 1);
  std::vector<Sums> parts(static_cast<size_t>(ceil_div(tiles, tiles_a_chunk)));
  for_each_task(std::ssize(parts), threads, [&](int64_t chunk) {
    Sums& part = parts[static_cast<size_t>(chunk)];
    LinkGradients own = found;
    if (chunk > 0 && found.values_Z != nullptr) {
      part.values_Z.resize(static_cast<size_t>(pass.graph.links()));
      own.values_Z = part.values_Z.data();
    }
    if (chunk > 0 && found.bias_N != nullptr) {
      part.bias_N.resize(static_cast<size_t>(pass.graph.rows));
      own.bias_N = part.bias_N.data();
    }
    const int64_t last = std::min(tiles, (chunk + 1) * tiles_a_chunk);
    for (int64_t tile = chunk * tiles_a_chunk; tile < last; ++tile) pass.do_tile(tile, own);
  });
  for (const Sums& part : parts) {
    add(part.values_Z, found.values_Z);
    add(part.bias_N, found.bias_N);
  }
}

}  // namespace

void links_forward(const LinkGraph& graph, const float* values_Z, const float* bias_N, const Activations& x,
                   int64_t tokens, const Activations& y, Isa isa, int threads) {
  const LinkKernels& kernels = link_kernels(isa);
  const int64_t width = tile_width(kernels, tokens);
  const CutGraph cut(graph, width, tokens);
  for_each_task(ceil_div(tokens, width), useful_threads(graph.links(), tokens, threads), [&](int64_t index) {
    const int64_t first = index * width, count = std::min(width, tokens - first);
    const Tile of_x{graph.columns, first, count, width}, of_y{graph.rows, first, count, width};
    const float* x_KW = read_tile(kernels, x, of_x, Scratch::kActivations);
    float* y_NW = tile_of(y, of_y, Scratch::kPart);
    kernels.product(cut.blocks(), values_Z, bias_N, x_KW, width, y_NW);
    write_tile(kernels, y_NW, of_y, y);
  });
}

void links_backward(const LinkGraph& graph, const LinkGraph& by_column, const int32_t* places_Z, const float* values_Z,
                    const Activations& x, const Activations& y_gradient, int64_t tokens, const LinkGradients& found,
                    Isa isa, int threads) {
  const LinkKernels& kernels = link_kernels(isa);
  const int64_t width = tile_width(kernels, tokens), links = graph.links();
  std::vector<float> values_by_column_Z(found.x.data == nullptr ? 0 : static_cast<size_t>(links));
  for (size_t z = 0; z < values_by_column_Z.size(); ++z) values_by_column_Z[z] = values_Z[places_Z[z]];
  if (found.values_Z != nullptr) std::fill_n(found.values_Z, links, 0.0F);
  if (found.bias_N != nullptr) std::fill_n(found.bias_N, graph.rows, 0.0F);
  const CutGraph cut(graph, width, tokens), cut_by_column(by_column, width, tokens);
  const BackwardPass pass{
      kernels, cut.blocks(), cut_by_column.blocks(), values_by_column_Z.data(), graph, x, y_gradient, tokens, width};
  do_chunks(pass, found, useful_threads(links, tokens, threads));
}

void adam_step(float* weights, const float* gradients, float* first, float* second, int32_t* ages, int64_t count,
               const AdamStep& step, Isa isa, int threads) {
  const LinkKernels& kernels = link_kernels(isa);
  for_each_task(ceil_div(count, kAdamTask), useful_threads(count, 1, threads), [&](int64_t task) {
    const int64_t at = task * kAdamTask;
    kernels.adam(weights + at, gradients + at, first + at, second + at, ages + at, std::min(kAdamTask, count - at),
                 step);
  });
}

}  // namespace hebbline
