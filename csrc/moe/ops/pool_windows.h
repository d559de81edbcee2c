#pragma once
// Several cached rows become one: DeepSeek-V4's compressed attention.

#include <cstdint>

namespace moe {

/// out[w][d] = Σ_j softmax_j(gates[w][j][d]) · values[w][j][d]: values and gates [windows, length,
/// dim], out [windows, dim]. A gate of -inf leaves its value out; a column of nothing else gives 0.
/// DeepSeek-V4 (2026), section 2.3.2, equations 20 to 23. Parallel over windows.
void pool_windows(const float* values, const float* gates, int64_t windows, int64_t length,
                  int64_t dim, float* out);

}  // namespace moe
