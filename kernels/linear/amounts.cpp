#include "linear/amounts.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

namespace hebbline {
namespace {

constexpr double kFirstCache = 32 << 10;  // bytes

double columns_per_unit(ValueType values) {
  return values == ValueType::kFloat32 ? 1 : values == ValueType::kBfloat16 ? 2 : 4;
}

double value_bytes(ValueType values) {
  return values == ValueType::kFloat32 ? 4 : values == ValueType::kBfloat16 ? 2 : values == ValueType::kInt8 ? 1 : 0.5;
}

// What the CSR packing stores of a value: see SparseMatrix::fits_bfloat16.
double csr_bytes(ValueType values) { return values == ValueType::kFloat32 || values == ValueType::kInt4 ? 4 : 2; }

double tile_vectors(const Workload& work) {
  return std::ceil(work.rows / 16) * std::ceil(work.columns / columns_per_unit(work.values));
}

// Places of picked columns that rows leave empty while they wait for one another, as a share of all cells: counted on
// random masks of 2048 columns, by density and columns of a unit (1, 2, 4).
constexpr std::array<double, 8> kCountedDensities{0, 0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 1};
using EmptyPlaces = std::array<std::array<double, 8>, 3>;
constexpr EmptyPlaces kEmptyPlaces{{{0.02, 0.052, 0.085, 0.097, 0.099, 0.081, 0.057, 0},
                                    {0.045, 0.053, 0.066, 0.069, 0.064, 0.047, 0.033, 0},
                                    {0.055, 0.053, 0.051, 0.048, 0.040, 0.032, 0.020, 0}}};
constexpr EmptyPlaces kBroadEmptyPlaces{{{0.006, 0.017, 0.023, 0.026, 0.025, 0.021, 0.017, 0},
                                         {0.010, 0.014, 0.016, 0.017, 0.019, 0.020, 0.018, 0},
                                         {0.013, 0.011, 0.011, 0.013, 0.019, 0.021, 0.018, 0}}};

double empty_share(const EmptyPlaces& places, double density, double width) {
  const auto& shares = places[width < 2 ? 0 : width < 4 ? 1 : 2];
  size_t i = 1;
  while (i + 1 < kCountedDensities.size() && density > kCountedDensities[i]) ++i;
  const double from = kCountedDensities[i - 1], to = kCountedDensities[i];
  return std::lerp(shares[i - 1], shares[i], (density - from) / (to - from));
}

double pick_steps(const Workload& work, double links, const EmptyPlaces& places = kEmptyPlaces) {
  const double width = columns_per_unit(work.values), cells = work.rows * work.columns;
  if (cells <= 0) return 0;
  return (links + empty_share(places, links / cells, width) * cells) / (16 * width);
}

// Rare links are steps of their own, of which none is without a link.
double coded_steps(const Workload& work) {
  return pick_steps(work, work.links - work.rare_links) + std::min(work.rare_links, pick_steps(work, work.rare_links));
}

double steps_of_family(Family family, const Workload& work) {
  if (family == Family::kCoded) return coded_steps(work);
  return pick_steps(work, work.links, family == Family::kBroad ? kBroadEmptyPlaces : kEmptyPlaces);
}

// Writes the amounts of one family.
class Walk {
 public:
  Walk(const Workload& work, double tokens, Found found) : work_(work), tokens_(tokens), found_(found) {
    add(Term::kCall, 1);
  }

  // X and Y go through buffers of so many tokens.
  void pass_through(double tokens, Term cells_of_x = Term::kActivations) {
    add(cells_of_x, tokens * work_.columns);
    add(Term::kOutputs, tokens * work_.rows);
  }

  // The first pass over the weight, of up to `group` tokens, reads it from where it is, as does that of each further
  // group.
  void read(double bytes, double group) {
    add(found_ == Found::kMemory ? Term::kBytes : Term::kCachedBytes, bytes * std::ceil(tokens_ / group));
  }

  // Passes of 8 tokens, and one for the rest.
  void take_by_eights(double items) {
    for (double left = tokens_; left > 0; left -= 8) take_up_to_8(items, left);
  }

  // One pass of up to 8 tokens.
  void take_up_to_8(double items, double tokens) {
    add(tokens <= 1 ? Term::kOne : tokens <= 2 ? Term::kTwo : tokens <= 4 ? Term::kFour : Term::kEight, items);
  }

  void add(Term term, double amount) { amounts_[static_cast<size_t>(term)] += amount; }

  const Workload& work() const { return work_; }
  double tokens() const { return tokens_; }
  const Amounts& amounts() const { return amounts_; }

 private:
  Workload work_;
  double tokens_;
  Found found_;
  Amounts amounts_{};
};

// Columns of a block, as CsrPacking chooses them.
double csr_block_width(const Workload& work) {
  constexpr double kNarrowest = 128, kWidest = 1 << 15, kDense = 0.075;
  const double density = work.links / std::max(1.0, work.rows * work.columns);
  const double wanted = density < kDense ? 48 : 24;
  double width = kNarrowest;
  while (width < kWidest && width * density < wanted) width *= 2;
  return std::min(width, work.columns);
}

// Links by rows: tiles of 64 tokens, of scalar code 32; a narrow one has loops of its own.
void walk_csr(Walk& walk, Isa isa) {
  const Workload& work = walk.work();
  const bool has_halves = isa == Isa::kAvx512 || isa == Isa::kAmx;
  const bool halves = has_halves && (work.values == ValueType::kBfloat16 || work.values == ValueType::kInt8);
  const double widest = isa == Isa::kScalar || isa == Isa::kAmxEmulated ? 32 : 64;
  walk.read(packed_bytes(Family::kCsr, work, Isa::kAvx512), widest);
  const double pieces = work.rows * std::ceil(work.columns / std::max(1.0, csr_block_width(work)));
  if (walk.tokens() <= 1) {
    walk.pass_through(1, Term::kNarrow);
    walk.add(Term::kPieces, pieces);
    return walk.add(Term::kOne, work.links);
  }
  for (double left = walk.tokens(); left > 0; left -= widest) {
    const double count = std::min(left, widest);
    walk.add(Term::kPieces, pieces);
    const double width = count <= 4 ? 4 : count <= 8 ? 8 : std::ceil(count / 16) * 16;
    walk.pass_through(width, count <= 8 ? Term::kNarrow : Term::kActivations);
    if (csr_block_width(work) * width * sizeof(float) > kFirstCache) walk.add(Term::kFar, work.links * width / 16);
    if (count <= 8) {
      walk.add(count <= 4 ? Term::kFour : Term::kEight, work.links);
      continue;
    }
    walk.add(Term::kPasses, work.links);
    if (halves && count > 16) {
      walk.add(Term::kHalves, work.links * std::ceil(count / 32));
    } else {
      walk.add(Term::kWide, work.links * std::ceil(count / 16));
    }
  }
}

// A bitmask expanded to vectors: once for up to 8 tokens, else once for 64, into a buffer. AMX takes 16 tokens at once.
void walk_tile(Walk& walk, Isa isa) {
  constexpr double kStripTokens = 64, kTileTokens = 16, kLeastTileTokens = 4;
  const Workload& work = walk.work();
  const double vectors = tile_vectors(work), tokens = walk.tokens();
  walk.pass_through(tokens);
  walk.read(packed_bytes(Family::kTile, work, Isa::kAvx512), kStripTokens);
  if (isa == Isa::kAmx && work.values != ValueType::kFloat32 && tokens >= kLeastTileTokens) {
    walk.add(Term::kPasses, vectors * std::ceil(tokens / kStripTokens));
    return walk.add(Term::kHalves, vectors * std::ceil(tokens / kTileTokens));
  }
  if (tokens <= 8) return walk.take_up_to_8(vectors, tokens);
  walk.add(Term::kPasses, vectors * std::ceil(tokens / kStripTokens));
  walk.add(Term::kWide, vectors * std::ceil(tokens / 8));
}

void walk_panel(Walk& walk) {
  walk.pass_through(walk.tokens());
  walk.read(packed_bytes(Family::kPanel, walk.work(), Isa::kAvx512), 64);
  walk.take_by_eights(walk.work().vectors);
}

void walk_pick(Walk& walk, Family family) {
  walk.pass_through(walk.tokens());
  walk.read(packed_bytes(family, walk.work(), Isa::kAvx512), 64);
  walk.take_by_eights(steps_of_family(family, walk.work()));
  // Each strip reads X of up to 8 tokens, a cache line after another.
  const double line = 16 * columns_per_unit(walk.work().values), lines = std::ceil(walk.work().columns / line);
  if (std::min(walk.tokens(), 8.0) * lines * 64 > kFirstCache) {
    walk.add(Term::kFar, std::ceil(walk.work().rows / 16) * walk.tokens() * lines);
  }
}

// Links taken in steps of 8 rows, up to 4 of integers, 2 of bfloat16 or one of float32 of each: see pick_narrow.cpp. A
// step of a broad window counts for more than one.
struct NarrowSteps {
  double steps, weight, place_bytes;
};

// Steps of one width of window: `empty` of all cells are those that rows leave empty while they wait for one another,
// which falls with density; counted on random masks of 1% to 50%.
double steps_of(const Workload& work, double links_a_step, double empty, double falls) {
  const double cells = std::max(1.0, work.rows * work.columns);
  return work.links / links_a_step + empty * cells * std::exp(-work.links / cells / falls);
}

NarrowSteps narrow_steps(const Workload& work) {
  constexpr double kBroadStep = 1.2;
  if (work.values == ValueType::kFloat32) return {steps_of(work, 8, 0.0125, 10), 1, 4};
  const bool half = work.values == ValueType::kBfloat16;
  const double narrow = half ? steps_of(work, 16, 0.0114, 0.8) : steps_of(work, 32, 0.006, 0.4);
  const double broad = half ? steps_of(work, 16, 0.0055, 0.85) : steps_of(work, 32, 0.0026, 0.35);
  if (kBroadStep * broad < narrow) return {broad, kBroadStep, half ? 16.0 : 32.0};
  return {narrow, 1, 16};
}

void walk_narrow_pick(Walk& walk) {
  const Workload& work = walk.work();
  const NarrowSteps steps = narrow_steps(work);
  walk.pass_through(walk.tokens());
  walk.read(packed_bytes(Family::kPick, work, Isa::kAvx2), 64);
  walk.take_by_eights(steps.steps * steps.weight);
  if (work.groups > 1) walk.add(Term::kPieces, work.rows / 8 * work.groups * std::ceil(walk.tokens() / 8));
}

// Four links at a time: tiles of 8, 16 or 32 tokens.
void walk_quad(Walk& walk) {
  constexpr double kWidest = 32;
  const Workload& work = walk.work();
  walk.read(packed_bytes(Family::kQuad, work, Isa::kAvx2), kWidest);
  for (double left = walk.tokens(); left > 0; left -= kWidest) {
    const double width = left <= 8 ? 8 : left <= 16 ? 16 : kWidest;
    walk.pass_through(width, width <= 8 ? Term::kNarrow : Term::kActivations);
    walk.add(width <= 8 ? Term::kEight : width <= 16 ? Term::kPasses : Term::kWide, work.links / 4);
    if (work.groups > 1) walk.add(Term::kPieces, work.rows * work.groups);
  }
}

// All cells as floats: up to 6 tokens at once, groups of 96.
void walk_dense(Walk& walk) {
  constexpr double kMostTokens = 6, kGroupTokens = 96;
  const Workload& work = walk.work();
  const double cells = work.rows * work.columns;
  walk.pass_through(walk.tokens());
  walk.read(packed_bytes(Family::kDense, work, Isa::kAvx2), kGroupTokens);
  if (walk.tokens() <= 1) return walk.add(Term::kOne, cells);
  walk.add(Term::kPasses, cells * std::ceil(walk.tokens() / kMostTokens));
  walk.add(Term::kWide, cells * walk.tokens());
}

// X gathered by links, for up to 4 tokens at a time.
void walk_sell(Walk& walk) {
  walk.pass_through(walk.tokens());
  walk.read(packed_bytes(Family::kSell, walk.work(), Isa::kAvx512), 4);
  for (double left = walk.tokens(); left > 0; left -= 4) walk.take_up_to_8(walk.work().links, std::min(left, 4.0));
}

}  // namespace

Amounts amounts(Family family, const Workload& work, Isa isa, double tokens, Found found) {
  Walk walk(work, tokens, found);
  switch (family) {
    case Family::kCsr:
      walk_csr(walk, isa);
      break;
    case Family::kSell:
      walk_sell(walk);
      break;
    case Family::kTile:
      walk_tile(walk, isa);
      break;
    case Family::kPanel:
      walk_panel(walk);
      break;
    case Family::kPick:
      uses_avx2(isa) ? walk_narrow_pick(walk) : walk_pick(walk, family);
      break;
    case Family::kBroad:
    case Family::kCoded:
      walk_pick(walk, family);
      break;
    case Family::kQuad:
      walk_quad(walk);
      break;
    case Family::kDense:
      walk_dense(walk);
      break;
  }
  return walk.amounts();
}

Amounts baseline_amounts(const Workload& work, double tokens, Found found) {
  Walk walk(work, tokens, found);
  const double cells = work.rows * work.columns;
  walk.pass_through(tokens);
  walk.read(4 * cells, tokens);
  if (tokens <= 8) walk.take_up_to_8(cells, tokens);
  if (tokens > 8) walk.add(Term::kPasses, cells);
  if (tokens > 1) walk.add(Term::kWide, cells * tokens / 16);
  return walk.amounts();
}

double packed_bytes(Family family, const Workload& work, Isa isa) {
  const double width = columns_per_unit(work.values);
  switch (family) {
    case Family::kCsr:
    case Family::kSell:
      return work.links * (2 + csr_bytes(work.values));
    case Family::kTile:
      return tile_vectors(work) * 2 * width + work.links * value_bytes(work.values);
    case Family::kPanel:
      return work.vectors * 64;
    case Family::kPick: {
      if (!uses_avx2(isa)) return steps_of_family(family, work) * (66 + 16 * width);
      const NarrowSteps steps = narrow_steps(work);
      return steps.steps * (2 + steps.place_bytes + (work.values == ValueType::kInt4 ? 16 : 32));
    }
    case Family::kBroad:
      return steps_of_family(family, work) * (66 + 16 * width);
    case Family::kCoded:
      return coded_steps(work) * 66;
    case Family::kQuad:
      return work.links * 3;
    case Family::kDense:
      return work.rows * work.columns * 4;
  }
  return 0;
}

}  // namespace hebbline
