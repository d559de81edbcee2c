#pragma once
// Rows of keys and values on their way into a cache.

#include "moe/ops/attention.h"

namespace moe {

/// Where rows [tokens][heads][dim] are kept; of `rows.dtype`, or int8 where `scales` is set.
struct CacheRows {
  HeadsView rows;  // `data` is written to
  float* scales = nullptr;
  int64_t scale_token_stride = 0, scale_head_stride = 0;
};

/// Rounds `rows` (float32) to nearest into `to`; int8 rows with a scale of max|row| / 127 each, NaN
/// for a row that is not finite. A row's bytes depend on that row alone. Throws ValueError where
/// the shapes differ. Thread-safe for different `to`.
void keep_rows(const HeadsView& rows, const CacheRows& to);

}  // namespace moe
