#include "moe/ops/compute.h"

#include "moe/base/check.h"

namespace moe {

Compute parse_compute(std::string_view name) {
  if (name == "exact") return Compute::kExact;
  if (name == "fast") return Compute::kFast;
  if (name == "auto") return Compute::kAuto;
  throw ValueError(message("[compute] '", name, "'; 'exact', 'fast' or 'auto' is required"));
}

Dot choose_dot(Format format, Compute compute) {
  return compute == Compute::kExact ? Dot::kF32 : format_info(format).dot;
}

}  // namespace moe
