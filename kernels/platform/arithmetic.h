// Whole numbers that are cut into parts. Static, so that no copy of them is shared between instruction sets.
#pragma once

namespace hebbline {

// A second operand of the first one's type, whatever it is given as.
template <class T>
struct SameAs {
  using Type = T;
};

// a / b, rounded up; a is not negative, b positive.
template <class T>
static constexpr T ceil_div(T a, typename SameAs<T>::Type b) {
  return (a + b - 1) / b;
}

// The least multiple of b that is not below a.
template <class T>
static constexpr T round_up(T a, typename SameAs<T>::Type b) {
  return ceil_div(a, b) * b;
}

}  // namespace hebbline
