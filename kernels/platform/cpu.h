// What the processor can do, and which instruction set the kernels use.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace hebbline {

// Instruction sets in rising order of what they need. `kAmxEmulated` runs the AMX path's logic with portable tiles, to
// test it on any machine; it is used only where HEBBLINE_ISA names it.
enum class Isa { kScalar, kAvx2, kAvx512, kAmx, kAmxEmulated };

// CPUID flags, grouped as the kernels need them. Model names play no part.
struct CpuFeatures {
  bool avx2 = false;         // AVX2, FMA, F16C, BMI2
  bool avx512 = false;       // AVX-512 F, BW, DQ, VL, VBMI, VBMI2, VNNI
  bool avx512_bf16 = false;  // the above and AVX512_BF16
  bool amx = false;          // the above and AMX-TILE, AMX-INT8, AMX-BF16, and leave of the kernel to use them
};

// The features of this processor, detected once.
const CpuFeatures& cpu_features();

// The instruction set for a new kernel: the best there is, or what the environment variable HEBBLINE_ISA names
// (scalar, avx2, avx512, amx, amx-emulated). Throws std::runtime_error where it names what this processor lacks.
Isa select_isa();

// The name that HEBBLINE_ISA knows it by; none: there is no such instruction set; and all the names, for messages.
std::string name(Isa isa);
std::optional<Isa> isa_named(std::string_view name);
const char* isa_names();

}  // namespace hebbline
