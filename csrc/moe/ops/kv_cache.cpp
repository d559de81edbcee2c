#include "moe/ops/kv_cache.h"

#include <algorithm>

#include "moe/base/check.h"
#include "moe/base/parallel.h"
#include "moe/kernels/table.h"

namespace moe {

void keep_rows(const HeadsView& rows, const CacheRows& to) {
  const HeadsView& kept = to.rows;
  MOE_CHECK(rows.tokens == kept.tokens && rows.heads == kept.heads && rows.dim == kept.dim,
            "[keep_rows] rows are [", rows.tokens, ", ", rows.heads, ", ", rows.dim, "]; [",
            kept.tokens, ", ", kept.heads, ", ", kept.dim, "] are kept");
  MOE_CHECK(rows.dtype == DType::kF32, "[keep_rows] rows are not float32");
  const bool in_8_bits = to.scales != nullptr;
  const KeepRowFn keep = kernels().attention->keep[in_8_bits ? 3 : static_cast<int>(kept.dtype)];
  const auto bytes = static_cast<int64_t>(in_8_bits ? 1 : dtype_bytes(kept.dtype));
  const auto* from = static_cast<const float*>(rows.data);
  auto* data = static_cast<std::byte*>(const_cast<void*>(kept.data));
  const auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < rows.heads; ++h) {
        float* scale =
            in_8_bits ? to.scales + t * to.scale_token_stride + h * to.scale_head_stride : nullptr;
        keep(from + t * rows.token_stride + h * rows.head_stride, rows.dim,
             data + (t * kept.token_stride + h * kept.head_stride) * bytes, scale);
      }
    }
  };
  const int64_t token_floats = std::max<int64_t>(1, rows.heads * rows.dim);
  parallel_for(rows.tokens, std::max<int64_t>(1, (1 << 16) / token_floats), piece);
}

}  // namespace moe
