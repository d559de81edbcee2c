#pragma once
// What the steps of a decoded token are made of (token_step.h, latent_step.h).

#include <cstddef>
#include <cstdint>

#include "moe/base/check.h"
#include "moe/base/tensor_view.h"
#include "moe/ops/kv_cache.h"
#include "moe/ops/norm.h"
#include "moe/weights/packed_weight.h"

namespace moe {

/// x · Wᵀ + bias; the bias [rows] may be null.
struct LinearView {
  const PackedWeight* weight = nullptr;
  const float* bias = nullptr;

  int64_t rows() const { return weight->rows(); }
  int64_t cols() const { return weight->cols(); }
};

/// rms_norm's arguments. `size` is the weight's, 0 without one: it then fits every row.
struct RmsNormView {
  const float* weight = nullptr;
  int64_t size = 0;
  float offset = 0.0f, eps = 0.0f;
};

/// Where a sequence's rows of one kind lie: `rows.tokens` is what there is room for.
using TokenCache = CacheRows;

/// cos and sin [half] of the token's position; null: no rotation.
struct TokenAngles {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t half = 0;
};

inline void check_norm(const RmsNormView& norm, int64_t size, const char* name) {
  MOE_CHECK(norm.size == 0 || norm.size == size, "[token_step] ", name, " has ", norm.size,
            " numbers; ", size, " are required");
}

inline void run_norm(const RmsNormView& norm, MatrixView<const float> x, float* out,
                     const float* residual = nullptr, float* sum = nullptr) {
  NormParts parts;
  parts.weight = norm.weight;
  parts.offset = norm.offset;
  parts.residual = residual;
  parts.sum = sum;
  rms_norm(x, parts, norm.eps, out);
}

/// A token's row [heads, dim].
inline HeadsView token_row(const float* data, int64_t heads, int64_t dim) {
  HeadsView view;
  view.data = data;
  view.tokens = 1;
  view.heads = heads;
  view.dim = dim;
  view.token_stride = heads * dim;
  view.head_stride = dim;
  return view;
}

inline int64_t bytes_of(const CacheRows& rows) {
  return rows.scales != nullptr ? 1 : static_cast<int64_t>(dtype_bytes(rows.rows.dtype));
}

inline void keep_token(const float* row, const TokenCache& cache, int64_t position) {
  CacheRows to = cache;
  auto* data = static_cast<std::byte*>(const_cast<void*>(cache.rows.data));
  to.rows.data = data + position * cache.rows.token_stride * bytes_of(cache);
  to.rows.tokens = 1;
  if (to.scales != nullptr) to.scales += position * to.scale_token_stride;
  keep_rows(token_row(row, cache.rows.heads, cache.rows.dim), to);
}

inline HeadsView first_rows(const TokenCache& cache, int64_t tokens) {
  HeadsView view = cache.rows;
  view.tokens = tokens;
  return view;
}

inline void check_cache(const TokenCache& cache, int64_t heads, int64_t dim, int64_t position,
                        const char* name) {
  MOE_CHECK(cache.rows.heads == heads && cache.rows.dim == dim, "[token_step] the cache's ", name,
            " are [", cache.rows.heads, ", ", cache.rows.dim, "]; [", heads, ", ", dim,
            "] are required");
  MOE_CHECK(position >= 0 && position < cache.rows.tokens, "[token_step] position is ", position,
            "; the cache has room for ", cache.rows.tokens, " ", name);
}

}  // namespace moe
