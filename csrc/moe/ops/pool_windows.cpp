#include "moe/ops/pool_windows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/base/parallel.h"

namespace moe {

namespace {

constexpr int64_t kColumns = 64;  // of one pass over a window: their sums stay in registers or L1
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

void pool_columns(const float* values, const float* gates, int64_t length, int64_t stride,
                  int64_t columns, float* out) {
  float top[kColumns], sum[kColumns], total[kColumns];
  std::fill_n(top, columns, kMinusInf);
  std::fill_n(sum, columns, 0.0f);
  std::fill_n(total, columns, 0.0f);
  for (int64_t j = 0; j < length; ++j) {
    for (int64_t d = 0; d < columns; ++d) {
      // A NaN stays: it is to be seen in the result.
      const float gate = gates[j * stride + d];
      if (!(gate <= top[d])) top[d] = gate;
    }
  }
  for (int64_t j = 0; j < length; ++j) {
    for (int64_t d = 0; d < columns; ++d) {
      const float gate = gates[j * stride + d];
      if (gate == kMinusInf) continue;
      const float weight = std::exp(gate - top[d]);
      sum[d] += weight;
      total[d] += weight * values[j * stride + d];
    }
  }
  for (int64_t d = 0; d < columns; ++d) out[d] = sum[d] == 0.0f ? 0.0f : total[d] / sum[d];
}

}  // namespace

void pool_windows(const float* values, const float* gates, int64_t windows, int64_t length,
                  int64_t dim, float* out) {
  const auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      const int64_t at = w * length * dim;
      for (int64_t d = 0; d < dim; d += kColumns) {
        pool_columns(values + at + d, gates + at + d, length, dim, std::min(kColumns, dim - d),
                     out + w * dim + d);
      }
    }
  };
  parallel_for(windows, std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(1, length * dim)),
               piece);
}

}  // namespace moe
