#include "draws/draws.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "platform/tasks.h"

namespace hebbline {
namespace {

constexpr int64_t kTask = 1 << 14;  // entries
constexpr int64_t kSampled = 64;    // of so many keys one is looked at first
constexpr float kInfinity = std::numeric_limits<float>::infinity();

const DrawKernels& draw_kernels(Isa isa) { return HEBBLINE_CHOOSE(isa, kDrawKernels); }

int64_t tasks(int64_t count) { return (count + kTask - 1) / kTask; }

// What is not a number is not taken either.
float ordered(float key) { return key < kInfinity ? key : kInfinity; }

struct Bounds {
  float low = -kInfinity, high = kInfinity;
};

// Keys that the wanted one is most likely between, by a look at some.
Bounds likely_bounds(const float* keys, int64_t count, int64_t wanted) {
  std::vector<float> sample;
  for (int64_t i = 0; i < count; i += kSampled) sample.push_back(ordered(keys[i]));
  const double expected = static_cast<double>(wanted) / kSampled, spread = 4 * std::sqrt(expected) + 1;
  const auto high = static_cast<size_t>(expected + spread);
  Bounds bounds;
  if (high >= sample.size()) return bounds;
  const auto end = sample.begin() + static_cast<int64_t>(high);
  std::nth_element(sample.begin(), end, sample.end());
  bounds.high = *end;
  if (expected > spread) {
    const auto low = sample.begin() + static_cast<int64_t>(expected - spread);
    std::nth_element(sample.begin(), low, end);
    bounds.low = *low;
  }
  return bounds;
}

// The keys between bounds, and the number below.
struct Between {
  int64_t below = 0;
  std::vector<float> keys;
};

Between between(const DrawKernels& kernels, const float* keys, int64_t count, Bounds bounds, int threads) {
  std::vector<Between> parts(static_cast<size_t>(tasks(count)));
  for_each_task(tasks(count), threads, [&](int64_t task) {
    const int64_t first = task * kTask, length = std::min(kTask, count - first);
    const auto found = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(length));
    Between& part = parts[static_cast<size_t>(task)];
    const int64_t inside = kernels.between(keys + first, length, bounds.low, bounds.high, found.get(), &part.below);
    part.keys.assign(found.get(), found.get() + inside);
  });
  Between all;
  for (const Between& part : parts) {
    all.below += part.below;
    all.keys.insert(all.keys.end(), part.keys.begin(), part.keys.end());
  }
  return all;
}

// The key with `wanted` - 1 keys before it; infinity where there are none.
float last_wanted(const DrawKernels& kernels, const float* keys, int64_t count, int64_t wanted, int threads) {
  Between found = between(kernels, keys, count, likely_bounds(keys, count, wanted), threads);
  const auto inside = [&] { return found.below < wanted && wanted <= found.below + std::ssize(found.keys); };
  if (!inside()) found = between(kernels, keys, count, Bounds{}, threads);
  if (!inside()) return kInfinity;
  const auto place = found.keys.begin() + (wanted - 1 - found.below);
  std::nth_element(found.keys.begin(), place, found.keys.end());
  return *place;
}

}  // namespace

void race_keys(const float* scores, const uint8_t* excluded, int64_t count, uint64_t seed, uint64_t place,
               float temperature, Isa isa, int threads, float* keys) {
  const DrawKernels& kernels = draw_kernels(isa);
  for_each_task(tasks(count), threads, [&](int64_t task) {
    const int64_t first = task * kTask, length = std::min(kTask, count - first);
    kernels.race(scores + first, excluded == nullptr ? nullptr : excluded + first, length, seed,
                 place + static_cast<uint64_t>(first / 2), temperature, keys + first);
  });
}

int64_t smallest(const float* keys, int64_t count, int64_t wanted, Isa isa, int threads, uint8_t* taken) {
  if (wanted <= 0) {
    std::fill_n(taken, count, uint8_t{0});
    return 0;
  }
  const DrawKernels& kernels = draw_kernels(isa);
  const float last = wanted < count ? last_wanted(kernels, keys, count, wanted, threads) : kInfinity;
  std::vector<int64_t> marked(static_cast<size_t>(tasks(count)));
  for_each_task(tasks(count), threads, [&](int64_t task) {
    const int64_t first = task * kTask;
    marked[static_cast<size_t>(task)] = kernels.mark(keys + first, std::min(kTask, count - first), last, taken + first);
  });
  int64_t total = std::accumulate(marked.begin(), marked.end(), int64_t{0});
  // Of those equal to the last, the first stay.
  for (int64_t i = count - 1; total > wanted; --i) {
    if (taken[i] != 0 && keys[i] == last) {
      taken[i] = 0;
      --total;
    }
  }
  return total;
}

}  // namespace hebbline
