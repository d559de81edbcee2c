#include "moe/ops/compute.h"

#include "moe/base/check.h"

namespace moe {

Compute parse_compute(std::string_view name) {
  if (name == "exact") return Compute::kExact;
  if (name == "fast") return Compute::kFast;
  if (name == "auto") return Compute::kAuto;
  throw ValueError(message("[compute] '", name, "'; 'exact', 'fast' or 'auto' is required"));
}

Dot choose_dot(Format format, Compute compute, int64_t rows, int64_t cols) {
  Dot fast = format_info(format).dot;
  const auto& run = kernels().gemm->run[static_cast<int>(format)];
  if (run[static_cast<int>(Dot::kBf16x2)] != nullptr) fast = Dot::kBf16x2;
  const int64_t most = cols <= kSmallHeadCols ? kSmallHead : kSmallMatrix;
  const bool small = compute == Compute::kAuto && fast != Dot::kU8S8 && rows * cols <= most;
  return compute == Compute::kExact || small ? Dot::kF32 : fast;
}

}  // namespace moe
