#include <utility>

#include "links/links.h"

namespace hebbline::scalar {
#include "links/links_kernels.inc"
}  // namespace hebbline::scalar
