#pragma once
// Which keys a query attends to where it may not attend to all: DeepSeek's lightning indexer.

#include <cstdint>

#include "moe/ops/attention.h"

namespace moe {

struct SelectKeysInputs {
  HeadsView queries;       // [T, heads, D], float32
  const float* weights;    // [T, heads]
  HeadsView keys;          // [S, 1, D]
  const int64_t* visible;  // [T]: a query may choose among the keys before this one
  int64_t k = 0;
};

/// out [T, k]: the k visible keys with the largest scores Σ_h w_h · max(0, q_h · k_j), ascending,
/// -1 behind where fewer are visible. Between equal scores the earlier key is taken; NaN ranks
/// last. A row's choice depends on that query and the keys it sees, not on the other queries, later
/// keys or the threads. DeepSeek-V3.2-Exp (2025), section 2, equation 1; DeepSeek-V4,
/// section 2.3.1. Throws ValueError for shapes that do not fit. Thread-safe.
void select_keys(const SelectKeysInputs& inputs, int32_t* out);

}  // namespace moe
