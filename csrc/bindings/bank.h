#pragma once
// A layer's experts as Python holds them.

#include <optional>

#include "bindings/array.h"
#include "moe/ops/moe_block.h"

namespace moe::bindings {

/// What an ExpertBank points at, kept alive by Python.
struct Bank {
  const PackedWeight* gate;
  const PackedWeight* up;
  const PackedWeight* down;
  std::optional<py::array> gate_bias, up_bias, down_bias;
  ActivationSpec activation;

  ExpertBank view() const {
    return {gate,
            up,
            down,
            bias(gate_bias, up->rows(), "gate_bias"),
            bias(up_bias, up->rows(), "up_bias"),
            bias(down_bias, down->rows(), "down_bias"),
            activation};
  }
  const float* bias(const std::optional<py::array>& array, int64_t width, const char* name) const {
    if (!array) return nullptr;
    const float* data = data_of<float>(*array, 2, "moe_ffn", name);
    MOE_CHECK(array->shape(0) == up->experts() && array->shape(1) == width, "[moe_ffn] ", name,
              " has shape ", shape_text(*array), "; [", up->experts(), ", ", width,
              "] is required");
    return data;
  }
};

}  // namespace moe::bindings
