#include "moe/ops/combine.h"

#include <algorithm>
#include <cstring>

#include "moe/base/buffer.h"
#include "moe/base/check.h"
#include "moe/base/parallel.h"
#include "moe/kernels/table.h"

namespace moe {

namespace {

/// Rows per task: about 256 KB moved, so that a task outweighs handing it out.
int64_t grain_of(int64_t row_bytes) {
  return std::max<int64_t>(1, (int64_t{256} << 10) / std::max<int64_t>(1, row_bytes));
}

}  // namespace

void permute(const void* x, int64_t tokens, int64_t row_bytes, const Plan& plan, void* out) {
  for (const int32_t row : plan.rows) {
    MOE_CHECK(row >= 0 && row < tokens, "[permute] the plan names token ", row, "; x has ", tokens,
              " rows");
  }
  const auto* from = static_cast<const std::byte*>(x);
  auto* to = static_cast<std::byte*>(out);
  const auto copy = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(to + i * row_bytes, from + plan.rows[static_cast<size_t>(i)] * row_bytes,
                  static_cast<size_t>(row_bytes));
    }
  };
  parallel_for(static_cast<int64_t>(plan.rows.size()), grain_of(row_bytes), copy);
}

void combine(MatrixView<const float> y, const Plan& plan, const float* weights, int64_t tokens,
             int k, float* out) {
  const auto n = static_cast<int64_t>(plan.rows.size());
  MOE_CHECK(y.rows == n, "[combine] y has ", y.rows, " rows; the plan has ", n);
  // Where each (token, slot) lies in y; -1 where its slot is empty.
  std::vector<int64_t> position(static_cast<size_t>(tokens * k), -1);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t token = plan.rows[static_cast<size_t>(i)],
                  slot = plan.slots[static_cast<size_t>(i)];
    MOE_CHECK(token >= 0 && token < tokens && slot >= 0 && slot < k,
              "[combine] the plan names token ", token, ", slot ", slot, "; the assignment has ",
              tokens, " tokens of ", k, " slots");
    position[static_cast<size_t>(token * k + slot)] = i;
  }
  const RouterKernels& kernel = *kernels().router;
  const auto sum = [&](int64_t begin, int64_t end) {
    auto* rows = scratch_of<const float*>(Scratch::kRouter, static_cast<size_t>(k) * 2);
    auto* row_weights = reinterpret_cast<float*>(rows + k);
    for (int64_t t = begin; t < end; ++t) {
      int count = 0;
      for (int s = 0; s < k; ++s) {
        const int64_t at = position[static_cast<size_t>(t * k + s)];
        if (at < 0) continue;
        rows[count] = y.row(at);
        row_weights[count++] = weights[t * k + s];
      }
      kernel.combine(rows, row_weights, count, out + t * y.cols, y.cols);
    }
  };
  parallel_for(tokens, grain_of(y.cols * 4 * (k + 1)), sum);
}

}  // namespace moe
