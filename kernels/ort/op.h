// How a C++ class becomes an op of ONNX Runtime.
//
// A kernel class has a constructor `Kernel(const KernelInfo&)` and a method `void compute(KernelContext&)`; both report
// failure by throwing. Nothing thrown crosses into ONNX Runtime: it becomes an OrtStatus with the exception's message.
//
// Adding an op to the domain `ai.hebbline` is defining a constant of type `Op<Kernel>` in a source file of its own: the
// constant lists itself, and whatever the library is linked from is registered.
#pragma once

#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "ort/api.h"

namespace hebbline::ort {

// One input of an op. A node may leave an optional input out.
struct InputSpec {
  ElementType type;
  bool optional = false;
};

// ONNX Runtime's description of an op, in the form of API version 16. ONNX Runtime reads `version` and does not look
// at what later versions append.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const void* api, const OrtKernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  int (*GetInputType)(const CustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp*);
  int (*GetOutputType)(const CustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const CustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const CustomOp*, size_t index);
  int (*GetInputMemoryType)(const CustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  OrtStatus* (*CreateKernelV2)(const CustomOp*, const void* api, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  void* reserved[8];  // room for what later versions read only where `version` says so
};

// Runs `body` and turns what it throws into a status.
template <class Body>
OrtStatus* guarded(Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return make_status("hebbline kernels: out of memory");
  } catch (const std::exception& error) {
    return make_status(error.what());
  } catch (...) {
    return make_status("hebbline kernels: unknown error");
  }
}

// All ops that there are, in no order.
std::vector<const CustomOp*>& defined_ops();

// The op `name` with outputs of these types, computed by `Kernel`. It lists itself among `defined_ops`, and so lives as
// long as the process: a constant at namespace scope, or a static one.
template <class Kernel>
class Op : public CustomOp {
 public:
  Op(std::string name, std::vector<InputSpec> inputs, std::vector<ElementType> outputs = {ElementType::kFloat})
      : CustomOp{}, name_(std::move(name)), inputs_(std::move(inputs)), outputs_(std::move(outputs)) {
    version = kApiVersion;
    describe();
    CreateKernelV2 = [](const CustomOp*, const void*, const OrtKernelInfo* info, void** kernel) {
      return guarded([&] { *kernel = std::make_unique<Kernel>(KernelInfo(info)).release(); });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      return guarded([&] {
        KernelContext wrapped(context);
        static_cast<Kernel*>(kernel)->compute(wrapped);
      });
    };
    KernelDestroy = [](void* kernel) { std::unique_ptr<Kernel>(static_cast<Kernel*>(kernel)); };
    defined_ops().push_back(this);
  }
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;

 private:
  static const Op& self(const CustomOp* op) { return *static_cast<const Op*>(op); }

  void describe() {
    GetName = [](const CustomOp* op) { return self(op).name_.c_str(); };
    GetExecutionProviderType = [](const CustomOp*) { return "CPUExecutionProvider"; };
    GetInputTypeCount = [](const CustomOp* op) { return self(op).inputs_.size(); };
    GetInputType = [](const CustomOp* op, size_t i) { return static_cast<int>(self(op).inputs_[i].type); };
    GetInputCharacteristic = [](const CustomOp* op, size_t i) { return self(op).inputs_[i].optional ? 1 : 0; };
    GetInputMemoryType = [](const CustomOp*, size_t) { return 0; };
    GetOutputTypeCount = [](const CustomOp* op) { return self(op).outputs_.size(); };
    GetOutputType = [](const CustomOp* op, size_t i) { return static_cast<int>(self(op).outputs_[i]); };
    GetOutputCharacteristic = [](const CustomOp*, size_t) { return 0; };
    GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const CustomOp*) { return 1; };
    GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const CustomOp*) { return 1; };
  }

  std::string name_;
  std::vector<InputSpec> inputs_;
  std::vector<ElementType> outputs_;
};

}  // namespace hebbline::ort
