// What the processor can do, and which instruction set the kernels use.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hebbline {

// Instruction sets, those of an architecture in rising order of what they need. `kAmxEmulated` runs the AMX path's
// logic with portable tiles, to test it on any machine; it is used only where HEBBLINE_ISA names it.
enum class Isa { kScalar, kAvx2, kAvx2Vnni, kAvx512, kAmx, kAmxEmulated, kNeon, kNeonDot, kNeonI8mm };

// The design of a processor of x86-64, as far as tables of costs tell them apart: the same instructions take other
// times. AMD's up to Zen 4 do vectors of 64 bytes in two halves, and Zen 5 in one. A maker that is not Intel counts as
// AMD, from whose designs the others descend, and so does a processor of another architecture.
enum class Microarchitecture { kAmd, kZen5, kIntel };

// What the processor says of itself, grouped as the kernels need it. Model names play no part.
struct CpuFeatures {
  bool avx2 = false;         // AVX2, FMA, F16C, BMI2
  bool avx2_vnni = false;    // the above and AVX-VNNI: the dot product of bytes in 32-byte vectors
  bool avx512f = false;      // AVX2 and AVX-512 F alone
  bool avx512 = false;       // AVX-512 F, BW, DQ, VL, VBMI, VBMI2, VNNI
  bool avx512_bf16 = false;  // the above and AVX512_BF16
  bool amx = false;          // the above and AMX-TILE, AMX-INT8, AMX-BF16, and leave of the kernel to use them
  bool neon = false;         // NEON, which every AArch64 has
  bool neon_dot = false;     // the above and dot products of int8
  bool neon_i8mm = false;    // the above, matrix products of int8 and dot products of unsigned by signed bytes
};

// The features of this processor, detected once.
const CpuFeatures& cpu_features();

// That of this processor.
Microarchitecture this_microarchitecture();

// What the environment variable HEBBLINE_ISA names; nothing where it is not set. Throws std::runtime_error where it
// names what this processor lacks, or no instruction set.
std::optional<Isa> named_isa();

// The instruction set for a new kernel: what HEBBLINE_ISA names, or the best there is.
Isa select_isa();

// All that this processor has, but for kAmxEmulated.
std::vector<Isa> available_isas();

// Whether kernels of AVX2 serve it.
constexpr bool uses_avx2(Isa isa) { return isa == Isa::kAvx2 || isa == Isa::kAvx2Vnni; }

// Of AVX-512.
constexpr bool uses_avx512(Isa isa) { return isa == Isa::kAvx512 || isa == Isa::kAmx; }

// And of NEON.
constexpr bool uses_neon(Isa isa) { return isa == Isa::kNeon || isa == Isa::kNeonDot || isa == Isa::kNeonI8mm; }

// And those with its dot products of int8.
constexpr bool uses_neon_dot(Isa isa) { return isa == Isa::kNeonDot || isa == Isa::kNeonI8mm; }

// The name that HEBBLINE_ISA knows it by; none: there is no such instruction set; and all the names, for messages.
std::string name(Isa isa);
std::optional<Isa> isa_named(std::string_view name);
std::string isa_names();

}  // namespace hebbline
