#pragma once
// Rows into expert order and back.

#include <cstdint>

#include "moe/base/tensor_view.h"
#include "moe/ops/plan.h"

namespace moe {

/// out[i] = x[plan.rows[i]]: `row_bytes` each, whatever they hold. x has `tokens` rows; throws
/// ValueError if the plan was made for more. Parallel over rows.
void permute(const void* x, int64_t tokens, int64_t row_bytes, const Plan& plan, void* out);

/// out[t] = Σ_s weights[t, s] · y[i] where sorted row i is token t's slot s: in the order of slots,
/// in float32; 0 for a token without experts. y is [n, H] in the plan's order, weights [tokens, k],
/// out [tokens, H]. Throws ValueError if the shapes do not belong together. Parallel over tokens.
void combine(MatrixView<const float> y, const Plan& plan, const float* weights, int64_t tokens,
             int k, float* out);

}  // namespace moe
