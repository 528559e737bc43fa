// Constants of the rounding of X to int8.
#pragma once

namespace hebbline {

// The smallest magnitude that a token is scaled by, so that a token of zeros has a finite inverse.
inline constexpr float kSmallestMagnitude = 1e-30F;

}  // namespace hebbline
