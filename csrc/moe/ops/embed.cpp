#include "moe/ops/embed.h"

#include <algorithm>
#include <cstddef>

#include "moe/base/check.h"
#include "moe/base/parallel.h"
#include "moe/kernels/table.h"

namespace moe {

void embed(const void* table, DType dtype, int64_t vocab, int64_t hidden, const int64_t* ids,
           int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    MOE_CHECK(ids[i] >= 0 && ids[i] < vocab, "[embed] the id at position ", i, " is ", ids[i],
              "; 0 to ", vocab - 1, " is required");
  }
  const SampleKernels& kernel = *kernels().sample;
  const auto* rows = static_cast<const std::byte*>(table);
  const int64_t row_bytes = hidden * static_cast<int64_t>(dtype_bytes(dtype));
  const auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernel.widen(rows + ids[i] * row_bytes, dtype, hidden, out + i * hidden);
    }
  };
  parallel_for(count, std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, hidden)), piece);
}

}  // namespace moe
