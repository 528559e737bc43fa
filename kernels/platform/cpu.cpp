#include "platform/cpu.h"

#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string_view>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace hebbline {
namespace {

constexpr std::array<std::pair<Isa, std::string_view>, 9> kNames{{{Isa::kScalar, "scalar"},
                                                                  {Isa::kAvx2, "avx2"},
                                                                  {Isa::kAvx2Vnni, "avx2-vnni"},
                                                                  {Isa::kAvx512, "avx512"},
                                                                  {Isa::kAmx, "amx"},
                                                                  {Isa::kAmxEmulated, "amx-emulated"},
                                                                  {Isa::kNeon, "neon"},
                                                                  {Isa::kNeonDot, "neon-dot"},
                                                                  {Isa::kNeonI8mm, "neon-i8mm"}}};

#if defined(__x86_64__)

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

bool all(unsigned word, std::initializer_list<int> bits) {
  for (const int bit : bits) {
    if ((word >> bit & 1U) == 0) return false;
  }
  return true;
}

// The register state that the operating system saves (XCR0).
unsigned long long saved_state() {
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<unsigned long long>(high) << 32 | low;
}

// Linux hands tile registers only to processes that ask.
bool amx_granted() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

CpuFeatures detect() {
  CpuFeatures found;
  const Registers basic = cpuid(1, 0);
  if (!all(basic.c, {12, 23, 27, 28, 29})) return found;  // FMA, POPCNT, OSXSAVE, AVX, F16C
  const unsigned long long state = saved_state();
  const Registers wide = cpuid(7, 0);
  const Registers wide1 = wide.a >= 1 ? cpuid(7, 1) : Registers{};
  constexpr unsigned long long kAvxState = 0x6, kAvx512State = 0xe6, kTileState = 0x60000;
  found.avx2 = (state & kAvxState) == kAvxState && all(wide.b, {3, 5, 8});  // BMI1, AVX2, BMI2
  found.avx2_vnni = found.avx2 && all(wide1.a, {4});
  found.avx512f = found.avx2 && (state & kAvx512State) == kAvx512State && all(wide.b, {16});
  found.avx512 = found.avx512f && all(wide.b, {17, 30, 31}) &&  // DQ, BW, VL
                 all(wide.c, {1, 6, 11});                       // VBMI, VBMI2, VNNI
  found.avx512_bf16 = found.avx512 && all(wide1.a, {5});
  found.amx = found.avx512_bf16 && (state & kTileState) == kTileState && all(wide.d, {22, 24, 25}) && amx_granted();
  return found;
}

// As AMD and Intel define it: the extended family counts where the base one is 15.
unsigned family() {
  const unsigned word = cpuid(1, 0).a, base = word >> 8 & 0xf;
  return base == 0xf ? base + (word >> 20 & 0xff) : base;
}

Microarchitecture detect_microarchitecture() {
  constexpr unsigned kIntel = 0x756e6547, kAmd = 0x68747541;  // "Genu", "Auth"
  constexpr unsigned kZen5Family = 26;                        // later ones are taken for Zen 5 too
  const unsigned maker = cpuid(0, 0).b;
  if (maker == kIntel) return Microarchitecture::kIntel;
  return maker == kAmd && family() >= kZen5Family ? Microarchitecture::kZen5 : Microarchitecture::kAmd;
}

#elif defined(__aarch64__)

Microarchitecture detect_microarchitecture() { return Microarchitecture::kAmd; }

CpuFeatures detect() {
  CpuFeatures found;
  found.neon = true;
  found.neon_dot = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  found.neon_i8mm = found.neon_dot && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
  return found;
}

#endif

bool has(const CpuFeatures& features, Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return features.avx2;
    case Isa::kAvx2Vnni:
      return features.avx2_vnni;
    case Isa::kAvx512:
      return features.avx512;
    case Isa::kAmx:
      return features.amx;
    case Isa::kNeon:
      return features.neon;
    case Isa::kNeonDot:
      return features.neon_dot;
    case Isa::kNeonI8mm:
      return features.neon_i8mm;
    case Isa::kScalar:
    case Isa::kAmxEmulated:
      break;
  }
  return true;
}

Isa best(const CpuFeatures& features) {
  if (features.amx) return Isa::kAmx;
  if (features.avx512) return Isa::kAvx512;
  if (features.avx2_vnni) return Isa::kAvx2Vnni;
  if (features.neon_i8mm) return Isa::kNeonI8mm;
  if (features.neon_dot) return Isa::kNeonDot;
  if (features.neon) return Isa::kNeon;
  return features.avx2 ? Isa::kAvx2 : Isa::kScalar;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

Microarchitecture this_microarchitecture() {
  static const Microarchitecture found = detect_microarchitecture();
  return found;
}

std::optional<Isa> named_isa() {
  const char* wanted = std::getenv("HEBBLINE_ISA");
  if (wanted == nullptr || *wanted == '\0') return std::nullopt;
  const auto isa = isa_named(wanted);
  if (!isa) throw std::runtime_error("HEBBLINE_ISA=" + std::string(wanted) + " is not one of " + isa_names());
  if (!has(cpu_features(), *isa)) {
    throw std::runtime_error("HEBBLINE_ISA=" + std::string(wanted) + ": this processor lacks it; unset the variable");
  }
  return isa;
}

Isa select_isa() {
  const std::optional<Isa> named = named_isa();
  return named ? *named : best(cpu_features());
}

std::vector<Isa> available_isas() {
  std::vector<Isa> found;
  for (const auto& [isa, known] : kNames) {
    if (isa != Isa::kAmxEmulated && has(cpu_features(), isa)) found.push_back(isa);
  }
  return found;
}

std::string name(Isa isa) { return std::string(kNames[static_cast<size_t>(isa)].second); }

std::optional<Isa> isa_named(std::string_view wanted) {
  for (const auto& [isa, known] : kNames) {
    if (known == wanted) return isa;
  }
  return std::nullopt;
}

std::string isa_names() {
  std::string names;
  for (const auto& [isa, known] : kNames) names += (names.empty() ? "" : ", ") + std::string(known);
  return names;
}

}  // namespace hebbline
