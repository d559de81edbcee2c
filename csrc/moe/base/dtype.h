#pragma once
// Element types that cross the boundary as plain arrays (packed formats are quant/formats.inc).

#include <cstddef>
#include <cstdint>

namespace moe {

enum class DType : uint8_t { kF32, kBf16, kF16 };

inline constexpr size_t dtype_bytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

/// A value of a plain array, widened. `data` is aligned for its type.
float load_float(const void* data, DType dtype, int64_t index);

}  // namespace moe
