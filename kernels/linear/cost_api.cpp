// The cost model as Python and other programs call it: one question, one answer.

#include <algorithm>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>

#include "linear/choose.h"
#include "linear/cost.h"
#include "linear/families.h"

namespace hebbline {
namespace {

constexpr std::string_view kBaseline = "onnxruntime";
constexpr size_t kNameBytes = 16, kErrorBytes = 256;

// hebbline.kernels.cost holds the same two structures.
struct Question {
  const char* isa;
  const char* family;  // null: what the plan takes; "onnxruntime": its dense float32 MatMul
  const char* values;
  double rows, columns, links, vectors, groups;
  double tokens;
  int32_t is_cached;
};

struct Answer {
  double microseconds;
  double bytes;  // of the weight that a call reads
  double amounts[kTerms];
  int32_t is_measured;
  char family[kNameBytes];
  char table[kNameBytes];
  char error[kErrorBytes];
};

void write(std::string_view text, char* out, size_t capacity) {
  const size_t length = std::min(text.size(), capacity - 1);
  std::copy_n(text.data(), length, out);
  out[length] = '\0';
}

[[noreturn]] void refuse(const char* what, std::string_view given, const std::string& known) {
  throw std::runtime_error(std::string(what) + " '" + std::string(given) + "' is not one of " + known);
}

// Of weights with a normal distribution so many have exponents that bfloat16's codes leave out: see pick_coded.h. What
// is asked here knows no weights.
constexpr double kRareShare = 0.025;

Workload workload(const Question& question) {
  const auto values = values_named(question.values);
  if (!values) refuse("values", question.values, "float32, bfloat16, int8, int4");
  const double rare_links = *values == ValueType::kBfloat16 ? kRareShare * question.links : 0;
  return {*values, question.rows, question.columns, question.links, question.vectors, question.groups, rare_links};
}

void answer_family(Family family, const Workload& work, const Processor& processor, const Question& question,
                   Answer& answer) {
  const Found found = question.is_cached != 0 ? Found::kCache : Found::kMemory;
  answer.microseconds = cost_microseconds(family, work, processor, question.tokens, found);
  answer.bytes = packed_bytes(family, work, processor.isa);
  std::ranges::copy(amounts(family, work, processor.isa, question.tokens, found), answer.amounts);
  write(name(family), answer.family, kNameBytes);
}

void answer_baseline(const Workload& work, const Processor& processor, const Question& question, Answer& answer) {
  const Found found = question.is_cached != 0 ? Found::kCache : Found::kMemory;
  answer.microseconds = baseline_microseconds(work, processor, question.tokens, found);
  answer.bytes = 4 * work.rows * work.columns;
  std::ranges::copy(baseline_amounts(work, question.tokens, found), answer.amounts);
  write(kBaseline, answer.family, kNameBytes);
}

Family wanted_family(const Question& question, const Workload& work, const Processor& processor) {
  if (question.family == nullptr) return choose_plan(work, processor).family(question.tokens);
  const auto family = family_named(question.family);
  if (!family) refuse("family", question.family, family_names() + ", " + std::string(kBaseline));
  if (!can_hold(*family, work, processor.isa)) {
    throw std::runtime_error(std::string("family '") + question.family + "' has no kernels for " + name(processor.isa));
  }
  return *family;
}

void answer_question(const Question& question, Answer& answer) {
  const auto processor = processor_named(question.isa);
  if (!processor) refuse("instruction set", question.isa, isa_names() + "; -amd, -zen5 or -intel may follow");
  const Workload work = workload(question);
  write(table_name(*processor), answer.table, kNameBytes);
  answer.is_measured = is_measured(*processor) ? 1 : 0;
  if (question.family != nullptr && question.family == kBaseline)
    return answer_baseline(work, *processor, question, answer);
  answer_family(wanted_family(question, work, *processor), work, *processor, question, answer);
}

}  // namespace
}  // namespace hebbline

// Answers a question and returns 1; where it asks for what there is not, writes the reason and returns -1.
extern "C" __attribute__((visibility("default"))) int hebbline_cost(const hebbline::Question* question,
                                                                    hebbline::Answer* answer) {
  try {
    hebbline::answer_question(*question, *answer);
    return 1;
  } catch (const std::exception& error) {
    hebbline::write(error.what(), answer->error, hebbline::kErrorBytes);
    return -1;
  }
}
