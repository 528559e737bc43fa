// Kernels that exist once for each instruction set, and the choice among them.
//
// A set of kernels is a struct of function pointers. Each instruction set has a namespace, in which a source file of
// its own defines a constant of that struct; what the file defines besides has internal linkage.
// HEBBLINE_DECLARE(Type, kConstant), in namespace hebbline, declares the constants; HEBBLINE_CHOOSE(isa, kConstant) is
// the one that an instruction set takes. Both know the rows of cmake/instruction_sets.cmake that all kernels have.
#pragma once

#include "platform/cpu.h"

#define HEBBLINE_DECLARE_IN(space, Type, kConstant) \
  namespace space {                                 \
  extern const Type kConstant;                      \
  }

#if defined(__x86_64__)

#define HEBBLINE_DECLARE(Type, kConstant)      \
  HEBBLINE_DECLARE_IN(scalar, Type, kConstant) \
  HEBBLINE_DECLARE_IN(avx2, Type, kConstant)   \
  HEBBLINE_DECLARE_IN(avx512, Type, kConstant)

#define HEBBLINE_CHOOSE(isa, kConstant) \
  (::hebbline::uses_avx512(isa) ? avx512::kConstant : ::hebbline::uses_avx2(isa) ? avx2::kConstant : scalar::kConstant)

#elif defined(__aarch64__)

#define HEBBLINE_DECLARE(Type, kConstant)      \
  HEBBLINE_DECLARE_IN(scalar, Type, kConstant) \
  HEBBLINE_DECLARE_IN(neon, Type, kConstant)

#define HEBBLINE_CHOOSE(isa, kConstant) (::hebbline::uses_neon(isa) ? neon::kConstant : scalar::kConstant)

#else
#error "kernels are for x86-64 and AArch64: see cmake/instruction_sets.cmake"
#endif
