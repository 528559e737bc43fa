// Products over links, their gradients and Adam on every instruction set of this processor, against their definition in
// double; the same bits on any number of threads. Exits with 1 where they differ; meant to run under the sanitizers.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "links/links.h"

namespace {

using hebbline::Activations;
using hebbline::Isa;
using hebbline::LinkGraph;

struct Graph {
  int64_t rows, columns;
  std::vector<int32_t> starts, ends, places;

  LinkGraph view() const { return {rows, columns, starts.data(), ends.data()}; }
};

struct Pair {
  Graph by_row, by_column;
};

// Links at a density, of which some rows and columns have none.
Pair random_graph(int64_t rows, int64_t columns, double density, std::mt19937& random) {
  std::bernoulli_distribution linked(density);
  std::vector<int32_t> row_of, column_of;
  Graph graph{rows, columns, {0}, {}, {}}, other{columns, rows, {0}, {}, {}};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      if (r % 5 == 3 || c % 7 == 2 || !linked(random)) continue;
      row_of.push_back(static_cast<int32_t>(r));
      graph.ends.push_back(static_cast<int32_t>(c));
    }
    graph.starts.push_back(static_cast<int32_t>(graph.ends.size()));
  }
  for (int64_t c = 0; c < columns; ++c) {
    for (size_t z = 0; z < graph.ends.size(); ++z) {
      if (graph.ends[z] != c) continue;
      other.ends.push_back(row_of[z]);
      other.places.push_back(static_cast<int32_t>(z));
    }
    other.starts.push_back(static_cast<int32_t>(other.ends.size()));
  }
  return {graph, other};
}

std::vector<float> random_floats(size_t count, std::mt19937& random) {
  std::normal_distribution<float> draw;
  std::vector<float> values(count);
  for (auto& value : values) value = draw(random);
  return values;
}

Activations lie(std::vector<float>& data, int64_t tokens, int64_t features, bool features_first) {
  if (features_first) return {data.data(), 1, tokens};
  return {data.data(), features, 1};
}

float& at(const Activations& x, int64_t token, int64_t feature) {
  return x.data[token * x.token_stride + feature * x.feature_stride];
}

bool near(double found, double expected, double scale) { return std::abs(found - expected) <= 2e-6 * (1 + scale); }

// What one case is multiplied by and must come to.
struct Case {
  Pair graph;
  int64_t tokens;
  bool features_first;
  std::vector<float> values, bias, x_data, grad_data;

  int64_t rows() const { return graph.by_row.rows; }
  int64_t columns() const { return graph.by_row.columns; }
};

struct Results {
  std::vector<float> y, x, values, bias;
  bool operator==(const Results&) const = default;
};

Results compute(Case& given, Isa isa, int threads) {
  const auto size = [&](int64_t features) { return static_cast<size_t>(given.tokens * features); };
  Results found{std::vector<float>(size(given.rows())), std::vector<float>(size(given.columns())),
                std::vector<float>(given.values.size()), std::vector<float>(given.bias.size())};
  const bool first = given.features_first;
  const Activations x = lie(given.x_data, given.tokens, given.columns(), first);
  hebbline::links_forward(given.graph.by_row.view(), given.values.data(), given.bias.data(), x, given.tokens,
                          lie(found.y, given.tokens, given.rows(), !first), isa, threads);
  const hebbline::LinkGradients gradients{lie(found.x, given.tokens, given.columns(), first), found.values.data(),
                                          found.bias.data()};
  hebbline::links_backward(given.graph.by_row.view(), given.graph.by_column.view(), given.graph.by_column.places.data(),
                           given.values.data(), x, lie(given.grad_data, given.tokens, given.rows(), !first),
                           given.tokens, gradients, isa, threads);
  return found;
}

// Sums in double, and of magnitudes, which say how much rounding there may be.
struct Sum {
  double value = 0, magnitude = 0;
  void add(double term) {
    value += term;
    magnitude += std::abs(term);
  }
};

bool is_right(Case& given, Results& found) {
  const Graph& graph = given.graph.by_row;
  const bool first = given.features_first;
  const Activations x = lie(given.x_data, given.tokens, given.columns(), first);
  const Activations grad = lie(given.grad_data, given.tokens, given.rows(), !first);
  const Activations y = lie(found.y, given.tokens, given.rows(), !first);
  const Activations grad_x = lie(found.x, given.tokens, given.columns(), first);
  bool right = true;
  std::vector<Sum> of_links(given.values.size()), of_bias(given.bias.size());
  for (int64_t t = 0; t < given.tokens; ++t) {
    std::vector<Sum> of_x(static_cast<size_t>(given.columns()));
    for (int64_t r = 0; r < given.rows(); ++r) {
      const auto row = static_cast<size_t>(r);
      Sum output;
      output.add(given.bias[row]);
      of_bias[row].add(at(grad, t, r));
      for (auto z = static_cast<size_t>(graph.starts[row]); z < static_cast<size_t>(graph.starts[row + 1]); ++z) {
        const double value = given.values[z], slope = at(grad, t, r), input = at(x, t, graph.ends[z]);
        output.add(value * input);
        of_links[z].add(slope * input);
        of_x[static_cast<size_t>(graph.ends[z])].add(slope * value);
      }
      right &= near(at(y, t, r), output.value, output.magnitude);
    }
    for (int64_t c = 0; c < given.columns(); ++c) {
      const Sum& sum = of_x[static_cast<size_t>(c)];
      right &= near(at(grad_x, t, c), sum.value, sum.magnitude);
    }
  }
  for (size_t z = 0; z < of_links.size(); ++z) right &= near(found.values[z], of_links[z].value, of_links[z].magnitude);
  for (size_t r = 0; r < of_bias.size(); ++r) right &= near(found.bias[r], of_bias[r].value, of_bias[r].magnitude);
  return right;
}

bool check_products(Isa isa, int* cases) {
  std::mt19937 random(7);
  for (const int64_t tokens : {0, 1, 5, 16, 32, 33, 64, 100, 700}) {
    for (const double density : {0.0, 0.02, 0.3}) {
      for (const bool features_first : {false, true}) {
        Case given{
            random_graph(37, density > 0.1 ? 1700 : 71, density, random), tokens, features_first, {}, {}, {}, {}};
        given.values = random_floats(given.graph.by_row.ends.size(), random);
        given.bias = random_floats(static_cast<size_t>(given.rows()), random);
        given.x_data = random_floats(static_cast<size_t>(tokens * given.columns()), random);
        given.grad_data = random_floats(static_cast<size_t>(tokens * given.rows()), random);
        Results found = compute(given, isa, 1);
        if (!is_right(given, found) || !(compute(given, isa, 3) == found)) {
          std::printf("%s: %lld tokens at density %g differ\n", hebbline::name(isa).c_str(),
                      static_cast<long long>(tokens), density);
          return false;
        }
        ++*cases;
      }
    }
  }
  return true;
}

// Three steps of entries of several ages.
bool check_adam(Isa isa) {
  constexpr int64_t kCount = 40000;
  constexpr int32_t kOldest = 50;
  std::mt19937 random(9);
  std::vector<float> sizes, corrections;
  for (int32_t a = 0; a <= kOldest; ++a) {
    sizes.push_back(a == 0 ? 0 : static_cast<float>(1 / (1 - std::pow(0.9, a))));
    corrections.push_back(a == 0 ? 0 : static_cast<float>(1 / std::sqrt(1 - std::pow(0.95, a))));
  }
  const hebbline::AdamStep step{0.01F, 0.999F, 0.9F, 0.95F, 1e-8F, kOldest, sizes.data(), corrections.data()};
  std::vector<float> weights = random_floats(kCount, random), first(kCount), second(kCount);
  std::vector<double> expected(weights.begin(), weights.end()), m(kCount), v(kCount);
  std::vector<int32_t> ages(kCount), counted(kCount);
  for (int64_t i = 0; i < kCount; ++i) ages[static_cast<size_t>(i)] = counted[static_cast<size_t>(i)] = i % 60;
  for (int turn = 0; turn < 3; ++turn) {
    const std::vector<float> gradients = random_floats(kCount, random);
    hebbline::adam_step(weights.data(), gradients.data(), first.data(), second.data(), ages.data(), kCount, step, isa,
                        2);
    for (size_t i = 0; i < kCount; ++i) {
      counted[i] = std::min(counted[i] + 1, kOldest);
      const double gradient = gradients[i];
      m[i] = 0.9F * m[i] + (1 - 0.9F) * gradient;
      v[i] = 0.95F * v[i] + (1 - 0.95F) * gradient * gradient;
      const auto age = static_cast<size_t>(counted[i]);
      expected[i] = expected[i] * 0.999F - 0.01F * sizes[age] * m[i] / (std::sqrt(v[i]) * corrections[age] + 1e-8F);
      if (!near(weights[i], expected[i], 10) || ages[i] != counted[i]) {
        std::printf("%s: Adam differs at %zu\n", hebbline::name(isa).c_str(), i);
        return false;
      }
    }
  }
  return true;
}

}  // namespace

int main() {
  for (const Isa isa : hebbline::available_isas()) {
    int cases = 0;
    if (!check_products(isa, &cases) || !check_adam(isa)) return 1;
    std::printf("%s: %d products, Adam\n", hebbline::name(isa).c_str(), cases);
  }
  return 0;
}
