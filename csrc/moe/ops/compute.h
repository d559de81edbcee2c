#pragma once
// How exactly a product is computed, and the dot product that follows from it.

#include <string_view>

#include "moe/kernels/table.h"

namespace moe {

enum class Compute : uint8_t {
  kExact,  // dequantised weights, unquantised activations, float sums
  kFast,   // the format's own dot product: int8 or bf16 activations where it has one
  kAuto,   // fast, but bfloat16 numbers only for matrices that are worth it (kSmallMatrix)
};

/// Values of a matrix of floats up to which kAuto keeps the activations in float: it is in a cache
/// anyway, and a small model, whose logits lie close together, agrees with its float reference. A
/// small model's head has more of them, but few columns.
inline constexpr int64_t kSmallMatrix = int64_t{1} << 18;
inline constexpr int64_t kSmallHead = int64_t{1} << 20, kSmallHeadCols = 512;

/// "exact", "fast", "auto"; ValueError otherwise.
Compute parse_compute(std::string_view name);

/// The dot product that a rows × cols matrix of this format is multiplied with.
Dot choose_dot(Format format, Compute compute, int64_t rows, int64_t cols);

}  // namespace moe
