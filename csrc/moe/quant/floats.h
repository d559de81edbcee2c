#pragma once
// f32, bf16, f16: weights stored as they are, sixteen rows side by side.

#include <cstring>

#include "moe/quant/format.h"

namespace moe {

static inline void convert(float value, float* out) { *out = value; }
static inline void convert(float value, f16* out) { *out = to_f16(value); }
static inline float to_float(float value) { return value; }

/// [k][row] values of T; halves are widened by the dot product.
template <class T>
struct FloatRows {
  static constexpr int kDepth = 1;
  static constexpr int kUnitDepth = 1;
  static constexpr int64_t kBlockBytes = kPanelRows * sizeof(T);
  static constexpr int64_t kUnitBytes = kBlockBytes;
  static constexpr int64_t kTrailerBytes = 0;
  static constexpr Dot kDot = Dot::kF32;
  static constexpr Scales kScales = Scales::kNone;

  template <class V>
  [[gnu::always_inline]] static inline void values(const std::byte* unit, typename V::F32* out) {
    out[0] = V::load_f32(reinterpret_cast<const T*>(unit));
  }

  static void encode(const float* rows, int64_t depth, std::byte* panel) {
    auto* out = reinterpret_cast<T*>(panel);
    for (int64_t k = 0; k < depth; ++k) {
      for (int r = 0; r < kPanelRows; ++r) convert(rows[r * depth + k], out + k * kPanelRows + r);
    }
  }
  static float at(const std::byte* panel, int64_t, int row, int64_t k) {
    return to_float(reinterpret_cast<const T*>(panel)[k * kPanelRows + row]);
  }
};
using F32Format = FloatRows<float>;
using F16Format = FloatRows<f16>;

/// [k / 2][row][k % 2]: pairs along the depth, as the pair dot product wants them.
struct Bf16Format {
  static constexpr int kDepth = 2;
  static constexpr int kUnitDepth = 2;
  static constexpr int64_t kBlockBytes = 64;
  static constexpr int64_t kUnitBytes = 64;
  static constexpr int64_t kTrailerBytes = 0;
  static constexpr Dot kDot = Dot::kBf16;
  static constexpr Scales kScales = Scales::kNone;

  template <class V>
  [[gnu::always_inline]] static inline void values(const std::byte* unit, typename V::F32* out) {
    const typename V::U8 pairs = V::load_bytes(unit);
    out[0] = V::template pair<0>(pairs);
    out[1] = V::template pair<1>(pairs);
  }
  template <class V>
  [[gnu::always_inline]] static inline void weights(const std::byte* unit, typename V::U8* out) {
    out[0] = V::load_bytes(unit);
  }

  static int64_t index(int row, int64_t k) { return (k / 2 * kPanelRows + row) * 2 + k % 2; }
  static void encode(const float* rows, int64_t depth, std::byte* panel) {
    auto* out = reinterpret_cast<bf16*>(panel);
    for (int64_t k = 0; k < depth; ++k) {
      for (int r = 0; r < kPanelRows; ++r) out[index(r, k)] = to_bf16(rows[r * depth + k]);
    }
  }
  static float at(const std::byte* panel, int64_t, int row, int64_t k) {
    return to_float(reinterpret_cast<const bf16*>(panel)[index(row, k)]);
  }
};

}  // namespace moe
