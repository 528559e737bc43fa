#include "ort/api.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>

#include "ort/op.h"

struct OrtTensorTypeAndShapeInfo;

namespace hebbline::ort {
namespace {

// Places of the entries in the API table.
enum Entry : size_t {
  kCreateStatus = 0,
  kGetErrorCode = 1,
  kGetErrorMessage = 2,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kGetAttributeFloat = 85,
  kGetAttributeInt64 = 86,
  kGetAttributeString = 87,
  kContextGetInputCount = 88,
  kContextGetInput = 90,
  kContextGetOutput = 91,
  kReleaseStatus = 93,
  kReleaseTensorTypeAndShapeInfo = 99,
  kInfoGetInputCount = 230,
  kInfoGetNodeName = 244,
  kInfoGetConstantInput = 249,
  kContextParallelFor = 274,
};

constexpr int kFail = 1;
constexpr int kOldestMinor = 17;

std::mutex bind_mutex;
std::atomic<void* const*> table{nullptr};

template <class Result, class... Arguments>
Result call_in(void* const* entries, Entry entry, Arguments... arguments) {
  return reinterpret_cast<Result (*)(Arguments...)>(entries[entry])(arguments...);
}

template <class Result, class... Arguments>
Result call(Entry entry, Arguments... arguments) {
  return call_in<Result>(table.load(std::memory_order_acquire), entry, arguments...);
}

// Calls an entry that returns a status, and throws its message where it failed.
template <class... Arguments>
void checked(Entry entry, Arguments... arguments) {
  OrtStatus* status = call<OrtStatus*>(entry, arguments...);
  if (status == nullptr) return;
  const std::string message = call<const char*>(kGetErrorMessage, static_cast<const OrtStatus*>(status));
  call<void>(kReleaseStatus, status);
  throw Error(message);
}

// The minor version of "1.x.y"; throws for anything else.
long minor_version(const char* version) {
  char* end = nullptr;
  if (version != nullptr && std::strncmp(version, "1.", 2) == 0) {
    const long minor = std::strtol(version + 2, &end, 10);
    if (end != version + 2 && minor >= 0) return minor;
  }
  throw Error("hebbline kernels: cannot tell the version of this ONNX Runtime");
}

// A status must come back from the table with the code and the message that went in.
void probe_status(void* const* entries, const std::string& version) {
  const char* sent = "hebbline probe";
  auto* status = call_in<OrtStatus*>(entries, kCreateStatus, kFail, sent);
  const bool same =
      status != nullptr && call_in<int>(entries, kGetErrorCode, static_cast<const OrtStatus*>(status)) == kFail &&
      std::strcmp(call_in<const char*>(entries, kGetErrorMessage, static_cast<const OrtStatus*>(status)), sent) == 0;
  if (!same) throw Error("hebbline kernels: ONNX Runtime " + version + " does not have the C API they were made for");
  call_in<void>(entries, kReleaseStatus, status);
}

// Every entry in use must be there before one of them is called.
void probe_entries(void* const* entries, const std::string& version) {
  for (size_t entry = 0; entry <= kContextParallelFor; ++entry) {
    if (entries[entry] == nullptr) {
      throw Error("hebbline kernels: the C API of ONNX Runtime " + version + " lacks entry " + std::to_string(entry));
    }
  }
}

TensorView view(const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  checked(kGetTensorTypeAndShape, value, &info);
  int type = 0;
  size_t rank = 0;
  checked(kGetTensorElementType, static_cast<const OrtTensorTypeAndShapeInfo*>(info), &type);
  checked(kGetDimensionsCount, static_cast<const OrtTensorTypeAndShapeInfo*>(info), &rank);
  std::vector<int64_t> shape(rank);
  checked(kGetDimensions, static_cast<const OrtTensorTypeAndShapeInfo*>(info), shape.data(), rank);
  call<void>(kReleaseTensorTypeAndShapeInfo, info);
  void* data = nullptr;
  checked(kGetTensorMutableData, const_cast<OrtValue*>(value), &data);
  return {static_cast<ElementType>(type), std::move(shape), data};
}

OrtCustomOpDomain* shared_domain(const char* name, std::span<const CustomOp* const> ops) {
  static std::mutex mutex;
  static OrtCustomOpDomain* domain = nullptr;
  const std::lock_guard lock(mutex);
  if (domain == nullptr) {
    OrtCustomOpDomain* made = nullptr;
    checked(kCreateCustomOpDomain, name, &made);
    for (const CustomOp* op : ops) checked(kCustomOpDomainAdd, made, op);
    domain = made;
  }
  return domain;
}

}  // namespace

std::string name(ElementType type) {
  switch (type) {
    case ElementType::kFloat:
      return "float32";
    case ElementType::kUint8:
      return "uint8";
    case ElementType::kInt8:
      return "int8";
    case ElementType::kUint16:
      return "uint16";
    case ElementType::kInt32:
      return "int32";
    case ElementType::kInt64:
      return "int64";
    case ElementType::kFloat16:
      return "float16";
    case ElementType::kBfloat16:
      return "bfloat16";
    case ElementType::kUndefined:
      break;
  }
  return "element type " + std::to_string(static_cast<int>(type));
}

size_t TensorView::size() const {
  size_t count = 1;
  for (const int64_t extent : shape) count *= static_cast<size_t>(extent);
  return count;
}

size_t TensorView::bytes() const {
  switch (type) {
    case ElementType::kInt64:
      return size() * 8;
    case ElementType::kFloat:
    case ElementType::kInt32:
      return size() * 4;
    case ElementType::kUint16:
    case ElementType::kFloat16:
    case ElementType::kBfloat16:
      return size() * 2;
    case ElementType::kUint8:
    case ElementType::kInt8:
      return size();
    case ElementType::kUndefined:
      break;
  }
  return 0;
}

void bind(const OrtApiBase* base) {
  const std::lock_guard lock(bind_mutex);
  const char* version = base->GetVersionString();
  if (minor_version(version) < kOldestMinor) {
    throw Error(std::string("hebbline kernels need ONNX Runtime 1.17 or later, this is ") + version);
  }
  auto* const* entries = static_cast<void* const*>(base->GetApi(kApiVersion));
  if (entries == nullptr) {
    throw Error(std::string("hebbline kernels: ONNX Runtime ") + version + " does not offer C API version 16");
  }
  void* const* bound = table.load();
  if (bound == entries) return;
  if (bound != nullptr) throw Error("hebbline kernels are in use by another ONNX Runtime of this process");
  probe_entries(entries, version);
  probe_status(entries, version);
  table.store(entries, std::memory_order_release);
}

OrtStatus* make_status(const std::string& message) noexcept {
  return call<OrtStatus*>(kCreateStatus, kFail, message.c_str());
}

OrtStatus* add_domain(OrtSessionOptions* options, const char* domain, std::span<const CustomOp* const> ops) {
  return call<OrtStatus*>(kAddCustomOpDomain, options, shared_domain(domain, ops));
}

std::string KernelInfo::node_name() const {
  size_t size = 0;
  checked(kInfoGetNodeName, info_, static_cast<char*>(nullptr), &size);
  std::string result(size, '\0');
  checked(kInfoGetNodeName, info_, result.data(), &size);
  result.resize(size > 0 ? size - 1 : 0);  // the size counts the closing zero
  return result;
}

size_t KernelInfo::input_count() const {
  size_t count = 0;
  checked(kInfoGetInputCount, info_, &count);
  return count;
}

std::optional<int64_t> KernelInfo::integer(const char* attribute) const {
  int64_t value = 0;
  OrtStatus* status = call<OrtStatus*>(kGetAttributeInt64, info_, attribute, &value);
  if (status == nullptr) return value;
  call<void>(kReleaseStatus, status);
  return std::nullopt;
}

std::optional<float> KernelInfo::real(const char* attribute) const {
  float value = 0;
  OrtStatus* status = call<OrtStatus*>(kGetAttributeFloat, info_, attribute, &value);
  if (status == nullptr) return value;
  call<void>(kReleaseStatus, status);
  return std::nullopt;
}

std::optional<std::string> KernelInfo::text(const char* attribute) const {
  size_t size = 0;
  OrtStatus* status = call<OrtStatus*>(kGetAttributeString, info_, attribute, static_cast<char*>(nullptr), &size);
  if (status != nullptr) {
    call<void>(kReleaseStatus, status);
    return std::nullopt;
  }
  std::string value(size, '\0');
  checked(kGetAttributeString, info_, attribute, value.data(), &size);
  value.resize(size > 0 ? size - 1 : 0);  // the size counts the closing zero
  return value;
}

std::optional<TensorView> KernelInfo::constant_input(size_t index) const {
  if (index >= input_count()) return std::nullopt;
  int is_constant = 0;
  const OrtValue* value = nullptr;
  checked(kInfoGetConstantInput, info_, index, &is_constant, &value);
  if (is_constant == 0 || value == nullptr) return std::nullopt;
  return view(value);
}

std::optional<TensorView> KernelContext::input(size_t index) const {
  size_t count = 0;
  checked(kContextGetInputCount, static_cast<const OrtKernelContext*>(context_), &count);
  if (index >= count) return std::nullopt;
  const OrtValue* value = nullptr;
  checked(kContextGetInput, static_cast<const OrtKernelContext*>(context_), index, &value);
  if (value == nullptr) return std::nullopt;
  return view(value);
}

void* KernelContext::output(size_t index, std::span<const int64_t> shape) const {
  OrtValue* value = nullptr;
  checked(kContextGetOutput, context_, index, shape.data(), shape.size(), &value);
  void* data = nullptr;
  checked(kGetTensorMutableData, value, &data);
  return data;
}

void KernelContext::parallel_for(size_t count, const std::function<void(size_t)>& task) const {
  struct Job {
    const std::function<void(size_t)>& task;
    std::mutex mutex;
    std::exception_ptr failure;
  } job{task, {}, nullptr};
  const auto run = +[](void* data, size_t index) {
    auto& shared = *static_cast<Job*>(data);
    try {
      shared.task(index);
    } catch (...) {
      const std::lock_guard lock(shared.mutex);
      if (!shared.failure) shared.failure = std::current_exception();
    }
  };
  checked(kContextParallelFor, static_cast<const OrtKernelContext*>(context_), run, count, size_t{0},
          static_cast<void*>(&job));
  if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace hebbline::ort
