#pragma once
// int8: symmetric, one scale per row.

#include <algorithm>
#include <cmath>

#include "moe/quant/codes.h"

namespace moe {

/// [k / 4][row][k % 4] bytes q + 128 with q in [-127, 127]; sixteen float scales at the panel's
/// end.
struct Int8Format {
  static constexpr int kDepth = 4;
  static constexpr int kUnitDepth = 4;
  static constexpr int64_t kBlockBytes = 64;
  static constexpr int64_t kUnitBytes = 64;
  static constexpr int64_t kTrailerBytes = 64;
  static constexpr Dot kDot = Dot::kU8S8;
  static constexpr Scales kScales = Scales::kRow;
  static constexpr int kOffset = 128;

  template <class V>
  [[gnu::always_inline]] static inline void values(const std::byte* unit, typename V::F32* out) {
    byte_values<V>(V::load_bytes(unit), kOffset, out);
  }
  template <class V>
  [[gnu::always_inline]] static inline void weights(const std::byte* unit, typename V::U8* out) {
    out[0] = V::load_bytes(unit);
  }

  static int64_t index(int row, int64_t k) { return (k / 4 * kPanelRows + row) * 4 + k % 4; }
  static const float* scales(const std::byte* panel, int64_t depth) {
    return reinterpret_cast<const float*>(panel + depth / kDepth * kBlockBytes);
  }
  static void encode(const float* rows, int64_t depth, std::byte* panel) {
    auto* out = reinterpret_cast<uint8_t*>(panel);
    auto* scale = const_cast<float*>(scales(panel, depth));
    for (int r = 0; r < kPanelRows; ++r) {
      float largest = 0.0f;
      for (int64_t k = 0; k < depth; ++k)
        largest = std::max(largest, std::fabs(rows[r * depth + k]));
      scale[r] = largest / 127.0f;
      const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
      for (int64_t k = 0; k < depth; ++k) {
        const float q =
            std::min(std::max(-127.0f, std::nearbyint(rows[r * depth + k] * inverse)), 127.0f);
        out[index(r, k)] = static_cast<uint8_t>(static_cast<int>(q) + kOffset);
      }
    }
  }
  static float round(std::byte* panel, int64_t depth, int row, int64_t k, float x) {
    const float d = scales(panel, depth)[row];
    const float q = d != 0.0f ? std::clamp(std::nearbyint(x / d), -127.0f, 127.0f) : 0.0f;
    reinterpret_cast<uint8_t*>(panel)[index(row, k)] =
        static_cast<uint8_t>(static_cast<int>(q) + kOffset);
    return q * d;
  }
  static float at(const std::byte* panel, int64_t depth, int row, int64_t k) {
    const int q = reinterpret_cast<const uint8_t*>(panel)[index(row, k)];
    return static_cast<float>(q - kOffset) * scales(panel, depth)[row];
  }
};

}  // namespace moe
