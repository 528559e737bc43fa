// The entry point that ONNX Runtime looks up in an op library.

#include <cstdio>

#include "ops.h"
#include "ort/api.h"

namespace {

constexpr const char* kDomain = "ai.hebbline";

std::vector<const hebbline::ort::CustomOp*> all_ops() {
  std::vector<const hebbline::ort::CustomOp*> ops;
  for (const auto& family : {hebbline::linear_ops(), hebbline::gated_ops(), hebbline::norm_ops(),
                             hebbline::attention_ops(), hebbline::head_ops()}) {
    ops.insert(ops.end(), family.begin(), family.end());
  }
  return ops;
}

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

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  try {
    hebbline::ort::bind(base);
  } catch (const std::exception& error) {
    return refuse(base, error.what());
  }
  OrtStatus* status = nullptr;
  OrtStatus* thrown = hebbline::ort::guarded([&] {
    static const std::vector<const hebbline::ort::CustomOp*> ops = all_ops();
    status = hebbline::ort::add_domain(options, kDomain, ops);
  });
  return thrown ? thrown : status;
}
