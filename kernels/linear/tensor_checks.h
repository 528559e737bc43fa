// Checks of a node's tensors that all forms share; each throws ort::Error, which names the node.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "linear/matrix.h"

namespace hebbline {

[[noreturn]] inline void refuse(const LinearTensors& t, const std::string& what) {
  throw ort::Error("node '" + t.node + "': " + what);
}

inline std::string shape_text(const ort::TensorView& tensor) {
  std::string text = "[";
  for (const int64_t extent : tensor.shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

inline void check_type(const LinearTensors& t, const char* what, const ort::TensorView& tensor, ort::ElementType type) {
  if (tensor.type != type) refuse(t, std::string(what) + " is " + name(tensor.type) + ", not " + name(type));
}

inline void check_shape(const LinearTensors& t, const char* what, const ort::TensorView& tensor,
                        std::vector<int64_t> shape) {
  if (tensor.shape == shape) return;
  const ort::TensorView wanted{tensor.type, std::move(shape), nullptr};
  refuse(t, std::string(what) + " has shape " + shape_text(tensor) + ", not " + shape_text(wanted));
}

}  // namespace hebbline
