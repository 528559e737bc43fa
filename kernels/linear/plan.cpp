#include "linear/plan.h"

#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "linear/cost.h"
#include "linear/families.h"

namespace hebbline {
namespace {

constexpr int64_t kAlways = std::numeric_limits<int64_t>::max();

Plan forced_plan(std::string_view wanted, const Workload& work, Isa isa) {
  const auto family = family_named(wanted);
  if (!family) {
    throw std::runtime_error("HEBBLINE_FAMILY=" + std::string(wanted) + " is not one of " + family_names());
  }
  if (can_hold(*family, work, isa)) return {*family, *family, kAlways};
  throw std::runtime_error("HEBBLINE_FAMILY=" + std::string(wanted) + " cannot hold this layer with " + name(isa));
}

std::unique_ptr<Packing> pack_family(Family family, const SparseMatrix& matrix, Isa isa) {
  switch (family) {
#if defined(__x86_64__)
    case Family::kSell:
      return pack_sell(matrix);
    case Family::kPick:
      return isa == Isa::kAvx2 ? pack_narrow_pick(matrix) : pack_pick(matrix);
#endif
    case Family::kQuad:
      return pack_quad(matrix);
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
          static_cast<double>(matrix.groups)};
}

// Two packings of a weight, each for the number of tokens that it is best at.
class PackedPair : public Packing {
 public:
  PackedPair(std::unique_ptr<Packing> few, std::unique_ptr<Packing> many, int64_t many_from)
      : few_(std::move(few)), many_(std::move(many)), many_from_(many_from) {}

  void multiply(const Call& call, const Parallel& parallel) const override {
    (call.tokens < many_from_ ? *few_ : *many_).multiply(call, parallel);
  }

  size_t bytes() const override { return few_->bytes() + many_->bytes(); }

 private:
  std::unique_ptr<Packing> few_, many_;
  int64_t many_from_;
};

}  // namespace

Plan make_plan(const SparseMatrix& matrix, Isa isa, bool blocks) {
  const Workload work = workload(matrix, blocks);
  if (const char* wanted = std::getenv("HEBBLINE_FAMILY"); wanted != nullptr && *wanted != '\0') {
    return forced_plan(wanted, work, isa);
  }
  if (isa == Isa::kAmxEmulated && can_hold(Family::kTile, work, isa)) return {Family::kTile, Family::kTile, kAlways};
  return choose_plan(work, isa);
}

std::unique_ptr<Packing> pack(const SparseMatrix& matrix, Isa isa, bool blocks) {
  const Plan plan = make_plan(matrix, isa, blocks);
  if (plan.few == plan.many) return pack_family(plan.few, matrix, isa);
  return std::make_unique<PackedPair>(pack_family(plan.few, matrix, isa), pack_family(plan.many, matrix, isa),
                                      plan.many_from);
}

}  // namespace hebbline
