#include "linear/pick_steps.h"

namespace hebbline {

void StepLists::open_segment(int64_t strip, int64_t group) {
  // Lists of steps are as long as `windows`, to which the next is not yet added.
  const auto step = static_cast<int32_t>(windows.size());
  segments.push_back({step, step});
  if (!matrix_.quantised()) return;
  for (int64_t r = 0; r < shape_.rows; ++r) {
    const int64_t i = strip * shape_.rows + r;
    scales.push_back(i < matrix_.rows ? matrix_.scales_NG[walk_.order()[i] * matrix_.groups + group] : 0.0F);
  }
  corrections.resize(corrections.size() + static_cast<size_t>(shape_.rows));
}

PackedSteps::PackedSteps(const StepLists& lists, int64_t rows, const RowOrder& order)
    : rows_(rows),
      windows_(buffer_of(lists.windows)),
      places_(buffer_of(lists.places)),
      values_(buffer_of(lists.values)),
      segments_(buffer_of(lists.segments)),
      scales_(buffer_of(lists.scales)),
      corrections_(buffer_of(lists.corrections)),
      segment_offsets_S_(lists.segment_offsets) {
  if (order.sorted) order_ = buffer_of(order.rows);
}

size_t PackedSteps::bytes() const {
  return windows_.bytes() + places_.bytes() + values_.bytes() + segments_.bytes() + scales_.bytes() +
         corrections_.bytes() + order_.bytes();
}

StepsView PackedSteps::view() const {
  return {rows_,
          windows_.as<uint16_t>(),
          places_.as<uint8_t>(),
          values_.as<uint8_t>(),
          segments_.as<Segment>(),
          segment_offsets_S_.data(),
          scales_.as<float>(),
          corrections_.as<int32_t>(),
          order_.bytes() > 0 ? order_.as<int32_t>() : nullptr};
}

}  // namespace hebbline
