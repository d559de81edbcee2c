#pragma once
// Activations by name.

#include <optional>
#include <string>

#include "moe/kernels/table.h"

namespace moe::bindings {

inline std::optional<Activation> find_activation(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "gelu") return Activation::kGelu;
  if (name == "relu") return Activation::kRelu;
  if (name == "relu2") return Activation::kRelu2;
  if (name == "identity") return Activation::kIdentity;
  if (name == "swiglu_oai") return Activation::kSwigluOai;
  return std::nullopt;
}

}  // namespace moe::bindings
