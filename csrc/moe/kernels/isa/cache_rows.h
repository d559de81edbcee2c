#pragma once
// Rows of keys or values as a cache keeps them.
//
// Shapes        row [n] → out [n] of another type, and a scale for int8
// Definition    out[i] = nearest(row[i]), ties to even
//               int8: scale = max|row| / 127, out[i] = nearest(row[i] · 127 / max|row|)

#include <cstring>

#include "moe/kernels/table.h"
#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

static void keep_f32(const float* row, int64_t n, void* out, float*) noexcept {
  std::memcpy(out, row, static_cast<size_t>(n) * sizeof(float));
}

template <class T>
static void keep_half(const float* row, int64_t n, void* out, float*) noexcept {
  auto* to = static_cast<T*>(out);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(row + i));
  if (i == n) return;
  T few[kLanes];
  store(few, load_first(row + i, static_cast<int>(n - i)));
  std::memcpy(to + i, few, static_cast<size_t>(n - i) * sizeof(T));
}

/// A row with NaN or Inf gets a NaN scale: the damage stays visible, and in that row.
static void keep_int8(const float* row, int64_t n, void* out, float* scale) noexcept {
  auto* to = static_cast<int8_t*>(out);
  F32x16 largest = zero_f32();
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32x16 v = n - i >= kLanes ? load(row + i) : load_first(row + i, static_cast<int>(n - i));
    largest = max(abs(v), largest);
    bad |= to_bitmask(is_nan(sub(v, v)));  // Inf − Inf is NaN
  }
  const float top = bad != 0 ? 0.0f : reduce_max(largest);
  *scale = bad != 0 ? __builtin_nanf("") : top / 127.0f;
  // A subnormal maximum would make the inverse infinite; such a row is zero to all purposes.
  const F32x16 inverse = set1(top < 1e-30f ? 0.0f : 127.0f / top);
  for (int64_t i = 0; i < n; i += kLanes) {
    if (bad != 0) {
      std::memset(to + i, 0, static_cast<size_t>(n - i < kLanes ? n - i : kLanes));
    } else if (n - i >= kLanes) {
      store_i8(to + i, round_to_i32(mul(load(row + i), inverse)));
    } else {
      int8_t few[kLanes];
      const F32x16 v = load_first(row + i, static_cast<int>(n - i));
      store_i8(few, round_to_i32(mul(v, inverse)));
      std::memcpy(to + i, few, static_cast<size_t>(n - i));
    }
  }
}

}  // namespace moe::MOE_ISA
