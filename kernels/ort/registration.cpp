// The entry point that ONNX Runtime looks up in an op library.

#include <cstdio>

#include "ort/api.h"
#include "ort/op.h"

namespace {

constexpr const char* kDomain = "ai.hebbline";

// A status made through the table of an ONNX Runtime that was refused. CreateStatus is the table's first entry in every
// version there has been; where there is no table, nothing but the process's error stream is left to say so.
OrtStatus* refuse(const OrtApiBase* base, const char* message) {
  for (const uint32_t version : {hebbline::ort::kApiVersion, 1U}) {
    if (auto* const* entries = static_cast<void* const*>(base->GetApi(version)); entries && entries[0]) {
      return reinterpret_cast<OrtStatus* (*)(int, const char*)>(entries[0])(1, message);
    }
  }
  std::fprintf(stderr, "%s\n", message);
  return nullptr;
}

}  // namespace

std::vector<const hebbline::ort::CustomOp*>& hebbline::ort::defined_ops() {
  static std::vector<const CustomOp*> ops;
  return ops;
}

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  try {
    hebbline::ort::bind(base);
  } catch (const std::exception& error) {
    return refuse(base, error.what());
  }
  OrtStatus* status = nullptr;
  OrtStatus* thrown = hebbline::ort::guarded(
      [&] { status = hebbline::ort::add_domain(options, kDomain, hebbline::ort::defined_ops()); });
  return thrown ? thrown : status;
}
