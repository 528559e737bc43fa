// The values of the form Coded, whose exponents are in a code: hebbline.export.layouts.coded specifies it.
#pragma once

#include <cstdint>
#include <vector>

#include "linear/matrix.h"

namespace hebbline {

// The values of `links` links; throws ort::Error where the tensors do not fit together.
std::vector<float> decode_values(const LinearTensors& tensors, int64_t links);

}  // namespace hebbline
