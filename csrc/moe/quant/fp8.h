#pragma once
// fp8: E4M3 (four exponent bits, three of mantissa, no infinities) with a float scale for each row
// and 128 columns; 128 × 128 weights have the same one.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "moe/quant/format.h"

namespace moe {

/// The E4M3 code of the value nearest to x ≥ 0, ties to even; 126 (448) is the largest, 127 is NaN.
static inline uint8_t nearest_e4m3(float x) {
  if (!(x > 0.0f)) return x == 0.0f || x < 0.0f ? 0 : 127;
  if (x > 448.0f) return 126;
  const int exponent = std::clamp(std::ilogb(x), -6, 8);
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(x, 3 - exponent)));  // of 8 … 16
  return static_cast<uint8_t>(std::min((exponent + 6) * 8 + steps, 126));
}
static inline float e4m3_to_float(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float size = (code & 127) == 127 ? __builtin_nanf("")
                     : exponent == 0     ? static_cast<float>(mantissa) * 0x1p-9f
                                         : std::ldexp(8.0f + mantissa, exponent - 10);
  return code < 128 ? size : -size;
}

/// [k / 4][row / 4][k % 4 / 2][row % 4][k % 2] bytes: widened in each quarter of a vector, the
/// first halves are one word's pairs and the last the next word's. Then sixteen float scales. In
/// the bytes that are packed without a loss: a float scale, 128 codes.
struct Fp8Format {
  static constexpr int kDepth = 128, kGroup = 128, kUnitDepth = 4;
  static constexpr int64_t kUnitBytes = 64;
  static constexpr int64_t kScalesAt = kDepth * kPanelRows;
  static constexpr int64_t kBlockBytes = kScalesAt + 64;
  static constexpr int64_t kTrailerBytes = 0;
  static constexpr int64_t kFileBytes = 4 + kDepth;
  static constexpr bool kCutBlocks = true;
  static constexpr Dot kDot = Dot::kBf16;
  static constexpr Scales kScales = Scales::kGroup;
  static constexpr bool kMin = false;
  static constexpr int kScaleRows = 128;
  static constexpr float kMaxValue = 448.0f;

  template <class V>
  [[gnu::always_inline]] static inline void weights(const std::byte* unit, typename V::U8* out) {
    e4m3_pairs(V::load_bytes(unit), out[0], out[1]);
  }
  template <class V>
  [[gnu::always_inline]] static inline void values(const std::byte* unit, typename V::F32* out) {
    typename V::U8 pairs[2];
    weights<V>(unit, pairs);
    out[0] = V::template pair<0>(pairs[0]);
    out[1] = V::template pair<1>(pairs[0]);
    out[2] = V::template pair<0>(pairs[1]);
    out[3] = V::template pair<1>(pairs[1]);
  }
  template <class V>
  [[gnu::always_inline]] static inline void scale(const std::byte* block, int,
                                                  typename V::F32& factor, typename V::F32&) {
    factor = V::load_f32(reinterpret_cast<const float*>(block + kScalesAt));
  }

  static std::byte* place(std::byte* panel, int row, int64_t k) {
    const int64_t in = k % kDepth;
    return panel + k / kDepth * kBlockBytes + in / 4 * 64 + row / 4 * 16 + in % 4 / 2 * 8 +
           row % 4 * 2 + in % 2;
  }
  static float* scale_of(std::byte* panel, int row, int64_t k) {
    return reinterpret_cast<float*>(panel + k / kDepth * kBlockBytes + kScalesAt) + row;
  }
  static float round(std::byte* panel, int64_t depth, int row, int64_t k, float x) {
    const float d = *scale_of(panel, row, k);
    const uint8_t size = d > 0.0f ? nearest_e4m3(std::fabs(x / d)) : 0;
    *place(panel, row, k) = static_cast<std::byte>(x < 0.0f ? size | 128 : size);
    return at(panel, depth, row, k);
  }
  /// `scales` has one for each block: max|x| / 448 of the 128 rows that share it.
  static void encode_scaled(const float* rows, int64_t depth, const float* scales,
                            std::byte* panel) {
    for (int r = 0; r < kPanelRows; ++r) {
      for (int64_t k = 0; k < depth; ++k) {
        if (k % kDepth == 0) *scale_of(panel, r, k) = scales[k / kDepth];
        round(panel, depth, r, k, rows[r * depth + k]);
      }
    }
  }
  /// As encode_scaled with the scales of these sixteen rows alone.
  static void encode(const float* rows, int64_t depth, std::byte* panel) {
    for (int64_t begin = 0; begin < depth; begin += kDepth) {
      float largest = 0.0f;
      for (int r = 0; r < kPanelRows; ++r) {
        for (int k = 0; k < kDepth; ++k) {
          largest = std::max(largest, std::fabs(rows[r * depth + begin + k]));
        }
      }
      for (int r = 0; r < kPanelRows; ++r) {
        *scale_of(panel, r, begin) = largest / kMaxValue;
        for (int64_t k = begin; k < begin + kDepth; ++k) {
          round(panel, depth, r, k, rows[r * depth + k]);
        }
      }
    }
  }
  static void repack(const std::byte* const* rows, int64_t blocks, std::byte* panel) {
    for (int r = 0; r < kPanelRows; ++r) {
      for (int64_t b = 0; b < blocks; ++b) {
        const std::byte* file = rows[r] + b * kFileBytes;
        std::memcpy(scale_of(panel, r, b * kDepth), file, 4);
        for (int k = 0; k < kDepth; ++k) *place(panel, r, b * kDepth + k) = file[4 + k];
      }
    }
  }
  static float at(const std::byte* panel, int64_t, int row, int64_t k) {
    auto* bytes = const_cast<std::byte*>(panel);
    return e4m3_to_float(static_cast<uint8_t>(*place(bytes, row, k))) * *scale_of(bytes, row, k);
  }
};

}  // namespace moe
