// Races and their smallest keys on every instruction set of this processor, against their definition in double and
// each other, bit for bit. Exits with 1 where they differ; meant to run under the sanitizers.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "draws/draws.h"

namespace {

using hebbline::Isa;

constexpr uint64_t kSeed = 0x123456789abcdef0u;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

uint32_t random_bits(uint64_t seed, uint64_t place, int64_t i) {
  uint64_t z = seed + (place + static_cast<uint64_t>(i) / 2 + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return static_cast<uint32_t>(i % 2 == 0 ? z : z >> 32);
}

// Scores of many magnitudes, some of them zero, subnormal or not numbers.
std::vector<float> random_scores(int64_t count) {
  std::mt19937 random(static_cast<unsigned>(count));
  std::uniform_real_distribution<float> draw(-30, 30);
  std::vector<float> scores(static_cast<size_t>(count));
  for (auto& score : scores) score = std::exp(draw(random));
  for (size_t i = 0; i + 5 < scores.size(); i += 37) {
    scores[i] = 0;
    scores[i + 1] = 1e-40f;
    scores[i + 2] = std::numeric_limits<float>::quiet_NaN();
    scores[i + 3] = -1;
    scores[i + 4] = std::numeric_limits<float>::max();
  }
  return scores;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](float x, float y) { return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y); });
}

bool near(float found, double expected, bool logarithm) {
  if (std::abs(expected) > std::numeric_limits<float>::max()) return found == kInfinity;
  // Quotients below the least normal number have fewer bits.
  const double slack = logarithm ? 1e-6 * std::max(1.0, std::abs(expected)) : 1e-6 * std::abs(expected) + 1e-44;
  return std::abs(found - expected) <= slack;
}

bool check_race(int64_t count, bool excluding, float temperature) {
  const std::vector<float> scores = random_scores(count);
  std::vector<uint8_t> excluded(scores.size());
  for (size_t i = 0; i < excluded.size(); ++i) excluded[i] = i % 3 == 1;
  std::vector<float> first;
  for (const Isa isa : hebbline::available_isas()) {
    for (const int threads : {1, 3}) {
      std::vector<float> keys(scores.size());
      hebbline::race_keys(scores.data(), excluding ? excluded.data() : nullptr, count, kSeed, 7, temperature, isa,
                          threads, keys.data());
      if (first.empty()) first = keys;
      if (!same_bits(first, keys)) {
        std::printf("%s with %d threads: other bits\n", hebbline::name(isa).c_str(), threads);
        return false;
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    const double race = -std::log1p(-(static_cast<double>(random_bits(kSeed, 7, i)) + 0.5) / 0x1p32);
    const bool out = !(scores[at] > 0) || (excluding && excluded[at] != 0);
    const double score = scores[at], power = temperature;
    const double key = temperature == 1 ? race / score : std::log(race) - power * std::log(score);
    if (out ? first[at] == kInfinity : near(first[at], key, temperature != 1)) continue;
    std::printf("entry %ld of %ld, score %g, temperature %g: %g instead of %g\n", static_cast<long>(i),
                static_cast<long>(count), score, power, first[at], key);
    return false;
  }
  return true;
}

// The definition: a stable sort.
std::vector<uint8_t> sorted_smallest(const std::vector<float>& keys, int64_t wanted) {
  std::vector<size_t> order(keys.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::erase_if(order, [&](size_t i) { return !(keys[i] < kInfinity); });
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return keys[a] < keys[b]; });
  std::vector<uint8_t> taken(keys.size());
  for (size_t i = 0; i < std::min(order.size(), static_cast<size_t>(wanted)); ++i) taken[order[i]] = 1;
  return taken;
}

// Keys of `distinct` values, some of them not to be taken; in order where asked for, which misleads a sample.
std::vector<float> random_keys(int64_t count, int distinct, bool ascending) {
  std::mt19937 random(static_cast<unsigned>(count + distinct));
  std::uniform_int_distribution<int> draw(-distinct / 2, distinct / 2);
  std::vector<float> keys(static_cast<size_t>(count));
  for (auto& key : keys) key = static_cast<float>(draw(random)) / 16;
  if (ascending) std::sort(keys.begin(), keys.end());
  for (size_t i = 1; i < keys.size(); i += 11) keys[i] = i % 2 == 0 ? kInfinity : std::nanf("");
  for (size_t i = 0; i < keys.size(); i += 64 * 5) keys[i] = -kInfinity;
  return keys;
}

bool check_smallest(int64_t count, int distinct, bool ascending) {
  const std::vector<float> keys = random_keys(count, distinct, ascending);
  for (const int64_t wanted : {int64_t{0}, int64_t{1}, count / 100, count / 2, count - count / 20, count}) {
    const std::vector<uint8_t> expected = sorted_smallest(keys, wanted);
    const auto total = std::accumulate(expected.begin(), expected.end(), int64_t{0});
    for (const Isa isa : hebbline::available_isas()) {
      std::vector<uint8_t> taken(keys.size());
      const int64_t found = hebbline::smallest(keys.data(), count, wanted, isa, 2, taken.data());
      if (found == total && taken == expected) continue;
      std::printf("%s: the %ld smallest of %ld are others\n", hebbline::name(isa).c_str(), static_cast<long>(wanted),
                  static_cast<long>(count));
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  int races = 0, selections = 0;
  for (const int64_t count : {0, 1, 2, 63, 1024, 1025, 16384, 40001}) {
    for (const bool excluding : {false, true}) {
      for (const float temperature : {1.0f, 0.0f, 1.08f, 9.0f}) {
        if (!check_race(count, excluding, temperature)) return 1;
        ++races;
      }
    }
    for (const int distinct : {1, 50, 1 << 20}) {
      for (const bool ascending : {false, true}) {
        if (!check_smallest(count, distinct, ascending)) return 1;
        ++selections;
      }
    }
  }
  std::printf("%d races, %d selections, on %zu instruction sets\n", races, selections,
              hebbline::available_isas().size());
  return 0;
}
