#include "linear/plan.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <functional>
#include <future>
#include <map>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "linear/cost.h"
#include "linear/families.h"
#include "linear/pick_coded.h"

namespace hebbline {
namespace {

Plan forced_plan(std::string_view wanted, const Workload& work, Isa isa) {
  const auto family = family_named(wanted);
  if (!family) {
    throw std::runtime_error("HEBBLINE_FAMILY=" + std::string(wanted) + " is not one of " + family_names());
  }
  if (can_hold(*family, work, isa)) return plan_of(*family);
  throw std::runtime_error("HEBBLINE_FAMILY=" + std::string(wanted) + " cannot hold this layer with " + name(isa));
}

// HEBBLINE_PACKINGS, or as many as pay.
size_t most_packings() {
  const char* wanted = std::getenv("HEBBLINE_PACKINGS");
  if (wanted == nullptr || *wanted == '\0') return kAnyCopies;
  const std::string_view digits(wanted);
  size_t most = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), most);
  if (error != std::errc() || end != digits.data() + digits.size() || most == 0) {
    throw std::runtime_error("HEBBLINE_PACKINGS=" + std::string(digits) + " is no whole number from 1");
  }
  return most;
}

std::unique_ptr<Packing> pack_family(Family family, const SparseMatrix& matrix, Isa isa) {
  switch (family) {
#if defined(__x86_64__)
    case Family::kSell:
      return pack_sell(matrix);
    case Family::kPick:
      return uses_avx2(isa) ? pack_narrow_pick(matrix, isa) : pack_pick(matrix);
    case Family::kBroad:
      return pack_broad(matrix);
    case Family::kCoded:
      return pack_coded(matrix);
#endif
    case Family::kQuad:
      return pack_quad(matrix, isa);
    case Family::kDense:
      return pack_dense(matrix, isa);
    case Family::kTile:
      return pack_tile(matrix, isa);
    case Family::kPanel:
      return pack_panel(matrix, isa);
    default:  // kCsr; what needs AVX-512 is not planned without it
      break;
  }
  return pack_csr(matrix, isa);
}

// Vectors of 16 rows that hold a link.
double count_vectors(const SparseMatrix& matrix) {
  const int64_t width = matrix.values == ValueType::kFloat32 ? 1 : matrix.values == ValueType::kBfloat16 ? 2 : 4;
  // Rows of a block have the same links, so every sixteenth row stands for its strip.
  double vectors = 0;
  for (int64_t n = 0; n < matrix.rows; n += 16) {
    int64_t last = -1;
    for (int64_t z = matrix.row_offsets[n]; z < matrix.row_offsets[n + 1]; ++z) {
      vectors += matrix.columns_Z[z] / width != last ? 1 : 0;
      last = matrix.columns_Z[z] / width;
    }
  }
  return vectors;
}

Workload workload(const SparseMatrix& matrix, bool blocks) {
  return {matrix.values,
          static_cast<double>(matrix.rows),
          static_cast<double>(matrix.columns),
          static_cast<double>(matrix.links()),
          blocks ? count_vectors(matrix) : 0,
          static_cast<double>(matrix.groups),
          matrix.quantised() ? 0.0 : static_cast<double>(count_rare_links(matrix))};
}

// Several packings of a weight, each for the numbers of tokens that it is best at. They are made side by side.
class PlannedPackings : public Packing {
 public:
  PlannedPackings(const SparseMatrix& matrix, Isa isa, const Plan& plan) {
    const Family first = plan.steps.front().family;
    std::map<Family, std::future<std::unique_ptr<Packing>>> others;
    for (const PlanStep& step : plan.steps) {
      if (step.family == first || others.contains(step.family)) continue;
      others[step.family] = std::async(pack_family, step.family, std::cref(matrix), isa);
    }
    packings_[first] = pack_family(first, matrix, isa);
    for (auto& [family, packing] : others) packings_[family] = packing.get();
    for (const PlanStep& step : plan.steps) steps_.push_back({step.until, packings_[step.family].get()});
  }

  void multiply(const Call& call, const Parallel& parallel) const override {
    const auto takes = [&](const Step& step) { return call.tokens < step.until; };
    std::ranges::find_if(steps_, takes)->packing->multiply(call, parallel);
  }

  size_t bytes() const override {
    size_t bytes = 0;
    for (const auto& [family, packing] : packings_) bytes += packing->bytes();
    return bytes;
  }

 private:
  struct Step {
    int64_t until;
    const Packing* packing;
  };

  std::map<Family, std::unique_ptr<Packing>> packings_;
  std::vector<Step> steps_;
};

}  // namespace

Plan make_plan(const SparseMatrix& matrix, Isa isa, bool blocks) {
  const Workload work = workload(matrix, blocks);
  if (const char* wanted = std::getenv("HEBBLINE_FAMILY"); wanted != nullptr && *wanted != '\0') {
    return forced_plan(wanted, work, isa);
  }
  if (isa == Isa::kAmxEmulated && can_hold(Family::kTile, work, isa)) return plan_of(Family::kTile);
  return choose_plan(work, isa, most_packings());
}

std::unique_ptr<Packing> pack(const SparseMatrix& matrix, Isa isa, bool blocks) {
  const Plan plan = make_plan(matrix, isa, blocks);
  if (plan.steps.size() == 1) return pack_family(plan.steps.front().family, matrix, isa);
  return std::make_unique<PlannedPackings>(matrix, isa, plan);
}

}  // namespace hebbline
