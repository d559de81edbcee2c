#include "moe/ops/norm.h"

#include <algorithm>

#include "moe/base/parallel.h"
#include "moe/kernels/table.h"

namespace moe {

namespace {

void over_rows(MatrixView<const float> x, const NormParts& parts, float eps, float* out,
               void (*kernel)(const NormRow&) noexcept) {
  const auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      NormRow row{};
      row.x = x.row(i);
      row.residual = parts.residual == nullptr ? nullptr : parts.residual + i * x.cols;
      row.sum = parts.sum == nullptr ? nullptr : parts.sum + i * x.cols;
      row.weight = parts.weight;
      row.offset = parts.offset;
      row.bias = parts.bias;
      row.eps = eps;
      row.n = x.cols;
      row.out = out + i * x.cols;
      kernel(row);
    }
  };
  // Some 64 thousand floats (10 µs) per task: less is not worth waking a thread for.
  parallel_for(x.rows, std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, x.cols)), piece);
}

}  // namespace

void rms_norm(MatrixView<const float> x, const NormParts& parts, float eps, float* out) {
  over_rows(x, parts, eps, out, kernels().norm->rms_norm);
}

void layer_norm(MatrixView<const float> x, const NormParts& parts, float eps, float* out) {
  over_rows(x, parts, eps, out, kernels().norm->layer_norm);
}

}  // namespace moe
