#pragma once
// How exactly a product is computed, and the dot product that follows from it.

#include <string_view>

#include "moe/kernels/table.h"

namespace moe {

enum class Compute : uint8_t {
  kExact,  // dequantised weights, unquantised activations, float sums
  kFast,   // the format's own dot product: int8 or bf16 activations where it has one
  kAuto,   // fast for 8 bits and fewer and for bf16, exact otherwise; today the same as fast
};

/// "exact", "fast", "auto"; ValueError otherwise.
Compute parse_compute(std::string_view name);

/// The dot product that weights of this format are multiplied with.
Dot choose_dot(Format format, Compute compute);

}  // namespace moe
