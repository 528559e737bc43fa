// The part of ONNX Runtime's C API that the kernels use.
//
// No ONNX Runtime wheel carries headers, and none are needed: its API is an append-only table of function pointers, so
// the entries used here are declared by their place in it. Everything below asks for API version 16, whose entries
// never move; `KernelContext::parallel_for` is an entry of version 17, hence the oldest ONNX Runtime is 1.17.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;

struct OrtApiBase {
  const void* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

namespace hebbline::ort {

inline constexpr uint32_t kApiVersion = 16;

// Tensor element types, numbered as ONNX numbers them. `kUndefined` as the type of an op's input takes any type.
enum class ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kUint16 = 4,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kBfloat16 = 16,
};

// The name of an element type, for messages.
std::string name(ElementType type);

// An input that the library refuses. The message names the node and the tensor; it becomes an OrtStatus.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A tensor that ONNX Runtime owns: type, shape and data.
struct TensorView {
  ElementType type;
  std::vector<int64_t> shape;
  const void* data;

  // The number of elements.
  size_t size() const;

  // The bytes of all elements; 0 where their type is none of ElementType.
  size_t bytes() const;

  // The elements as `T`; the caller has checked `type`.
  template <class T>
  std::span<const T> as() const {
    return {static_cast<const T*>(data), size()};
  }
};

// Binds the API table of the ONNX Runtime that loads the library.
//
// Throws Error where that ONNX Runtime is older than 1.17, does not offer API version 16, disagrees with the table as
// declared here, or is another one than the library was bound to before.
void bind(const OrtApiBase* base);

// A failure status with this message; ONNX Runtime releases it.
OrtStatus* make_status(const std::string& message) noexcept;

// Adds a domain that holds the `ops` (see op.h; each outlives the process's sessions) to the session options.
// The domain is made once a process. Returns null or a failure.
OrtStatus* add_domain(OrtSessionOptions* options, const char* domain, std::span<const struct CustomOp* const> ops);

// What a kernel may ask at creation.
class KernelInfo {
 public:
  explicit KernelInfo(const OrtKernelInfo* info) : info_(info) {}

  // The node's name; may be empty.
  std::string node_name() const;

  // The number of the node's inputs, absent optional ones in the middle counted.
  size_t input_count() const;

  // An integer attribute; nothing where the node does not carry it.
  std::optional<int64_t> integer(const char* attribute) const;

  // The same for a float32 attribute.
  std::optional<float> real(const char* attribute) const;

  // The same for a string attribute.
  std::optional<std::string> text(const char* attribute) const;

  // Input `index` where it is a constant tensor; nothing where it is absent or computed.
  std::optional<TensorView> constant_input(size_t index) const;

 private:
  const OrtKernelInfo* info_;
};

// What a kernel may ask while it computes.
class KernelContext {
 public:
  explicit KernelContext(OrtKernelContext* context) : context_(context) {}

  // Input `index`; nothing where the node leaves it out.
  std::optional<TensorView> input(size_t index) const;

  // Output `index`, allocated with this shape, or the memory of this shape that the caller has bound to it.
  void* output(size_t index, std::span<const int64_t> shape) const;
  float* float_output(size_t index, std::span<const int64_t> shape) const {
    return static_cast<float*>(output(index, shape));
  }

  // Calls `task(i)` for every i in [0, count) on ONNX Runtime's own threads, and returns when all are done. The first
  // exception of a task is thrown here.
  void parallel_for(size_t count, const std::function<void(size_t)>& task) const;

 private:
  OrtKernelContext* context_;
};

}  // namespace hebbline::ort
