#include "sample/nucleus.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "sample/largest.h"

namespace hebbline {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kSample = 1024;  // tokens that are looked at to guess where the edge lies
// Others are looked at within this times the distance that the sample says, and so many of the sample beyond.
constexpr double kReach = 1.5, kSlack = 4;
constexpr double kTimes[] = {1, 3};  // and this times as far where the edge was not there
// For few tokens: of the weight that may be left aside, what is, by the sample; the next one where it was too much.
constexpr double kLeftAside[] = {0.75, 0.4, 0.15};

double sum_of(const std::vector<double>& weights) { return hebbline::sum_of(weights.data(), weights.size()); }

// Some tokens: their logits, in ascending order, and about how much weight the vocabulary has up to each of them.
class Sample {
 public:
  Sample(const SampleKernels& kernels, const Logits& row) : stride_(row.count / kSample) {
    for (int64_t v = 0; v < row.count; v += stride_) logits_.push_back(row.logits_V[v]);
    std::sort(logits_.begin(), logits_.end());
    tails_.resize(logits_.size());
    kernels.weigh(logits_.data(), size(), row.peak, row.temperature, tails_.data());
    double tail = 0;
    for (double& weight : tails_) weight = tail += weight * static_cast<double>(stride_);
  }

  // The first token with this weight up to it; the place after the last one where there is none.
  int64_t place(double tail) const { return std::lower_bound(tails_.begin(), tails_.end(), tail) - tails_.begin(); }

  // After the last place: the least logit that is larger than all.
  float logit(int64_t place) const {
    return place < size() ? logits_[static_cast<size_t>(place)] : std::nextafter(logits_.back(), kInfinity);
  }

  double tail(int64_t place) const { return place < 0 ? 0.0 : tails_[static_cast<size_t>(place)]; }
  double total() const { return tails_.back(); }
  int64_t last() const { return size() - 1; }

  // About how many tokens of the vocabulary reach the logit at a place.
  int64_t reaching(int64_t place) const { return stride_ * (size() - place); }

 private:
  int64_t size() const { return static_cast<int64_t>(logits_.size()); }

  int64_t stride_;
  std::vector<float> logits_;
  std::vector<double> tails_;
};

class Search {
 public:
  Search(const SampleKernels& kernels, const Logits& row, double top_p)
      : kernels_(kernels),
        row_(row),
        sample_(kernels, row),
        guess_(std::min(sample_.place((1 - top_p) * sample_.total()), sample_.last())) {
    const auto blocks = static_cast<size_t>((row.count + kSumBlock - 1) / kSumBlock);
    std::vector<double> sums(blocks);
    above_B_.resize(blocks);
    kernels.add_up(row.logits_V, row.count, row.peak, row.temperature, sample_.logit(guess_), sums.data(),
                   above_B_.data());
    total_ = sum_of(sums);
    target_ = top_p * total_;
  }

  // A nucleus of few tokens, out of all from a logit up to which there is less weight than may be left aside.
  Nucleus few() const {
    for (const double share : kLeftAside) {
      const int64_t first = sample_.place(share * (total_ - target_));
      if (sample_.reaching(first) > kMostNear / 2) return {};
      Nucleus found = between(sample_.logit(first), kInfinity);
      if (found.kind == Nucleus::Kind::kNone) return {};
      if (sum_of(found.weights_N) < target_) continue;
      keep(found, 0);
      found.kind = Nucleus::Kind::kFew;
      return found;
    }
    return {};
  }

  // A nucleus of many tokens: with its edge at the guess, the weight above is known, and so about how far the edge is.
  Nucleus many() const {
    const double above = sum_of(above_B_), step = sample_.tail(guess_) - sample_.tail(guess_ - 1);
    for (const double times : kTimes) {
      const double distance = times * (kReach * std::fabs(target_ - above) + kSlack * step);
      Nucleus found = above < target_ ? below_guess(above, distance) : above_guess(above, distance);
      if (found.kind != Nucleus::Kind::kNone) return found;
    }
    return {};
  }

 private:
  Nucleus below_guess(double above, double distance) const {
    const float low = sample_.logit(sample_.place(sample_.tail(guess_) - distance));
    Nucleus found = between(low, std::nextafter(sample_.logit(guess_), -kInfinity));
    if (found.kind == Nucleus::Kind::kNone || above + sum_of(found.weights_N) < target_) return {};
    keep(found, above);
    found.sums_B = above_B_;
    for (size_t n = 0; n < found.ids_N.size(); ++n) sum_with(found, found.ids_N[n]) += found.weights_N[n];
    return found;
  }

  Nucleus above_guess(double above, double distance) const {
    const float high = sample_.logit(sample_.place(sample_.tail(guess_) + distance));
    Nucleus found = between(sample_.logit(guess_), high);
    const double before = above - sum_of(found.weights_N);
    if (found.kind == Nucleus::Kind::kNone || before >= target_) return {};
    found.sums_B = above_B_;
    for (size_t n = 0; n < found.ids_N.size(); ++n) sum_with(found, found.ids_N[n]) -= found.weights_N[n];
    for (double& sum : found.sums_B) sum = std::max(sum, 0.0);
    keep(found, before);
    for (size_t n = 0; n < found.ids_N.size(); ++n) sum_with(found, found.ids_N[n]) += found.weights_N[n];
    return found;
  }

  static double& sum_with(Nucleus& found, int64_t id) { return found.sums_B[static_cast<size_t>(id / kSumBlock)]; }

  // The tokens whose logits are from `low` to `high`; of kind none where they are too many.
  Nucleus between(float low, float high) const {
    Nucleus found;
    found.above = high;
    found.ids_N.resize(kMostNear);
    const int64_t count = kernels_.find(row_.logits_V, row_.count, low, high, kMostNear, found.ids_N.data());
    if (count > kMostNear) return {};
    found.kind = Nucleus::Kind::kMany;
    found.ids_N.resize(static_cast<size_t>(count));
    std::vector<float> logits(found.ids_N.size());
    for (size_t n = 0; n < logits.size(); ++n) logits[n] = row_.logits_V[found.ids_N[n]];
    found.weights_N.resize(logits.size());
    kernels_.weigh(logits.data(), count, row_.peak, row_.temperature, found.weights_N.data());
    return found;
  }

  // Leaves of the tokens those that `before` needs to reach the target.
  void keep(Nucleus& found, double before) const {
    std::vector<uint8_t> kept(found.ids_N.size());
    keep_largest(found.weights_N.data(), static_cast<int64_t>(kept.size()), before, target_, kept.data());
    size_t count = 0;
    for (size_t n = 0; n < kept.size(); ++n) {
      found.ids_N[count] = found.ids_N[n];
      found.weights_N[count] = found.weights_N[n];
      count += kept[n];
    }
    found.ids_N.resize(count);
    found.weights_N.resize(count);
  }

  const SampleKernels& kernels_;
  const Logits row_;
  const Sample sample_;
  const int64_t guess_;
  std::vector<double> above_B_;  // by blocks, the weight of the tokens whose logits reach that at the guess
  double total_ = 0, target_ = 0;
};

}  // namespace

Nucleus find_nucleus(const SampleKernels& kernels, const Logits& row, double top_p) {
  if (row.count <= kSmallVocabulary) return {};
  const Search search(kernels, row, top_p);
  Nucleus found = search.few();
  return found.kind == Nucleus::Kind::kFew ? found : search.many();
}

}  // namespace hebbline
