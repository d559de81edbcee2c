#include "moe/base/dtype.h"

#include "moe/base/half.h"

namespace moe {

float load_float(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<const float*>(data)[index];
    case DType::kBf16:
      return to_float(static_cast<const bf16*>(data)[index]);
    case DType::kF16:
      break;
  }
  return to_float(static_cast<const f16*>(data)[index]);
}

}  // namespace moe
