#pragma once
// f32, bf16, f16: weights stored as they are, sixteen rows side by side.

#include <cstring>

#include "moe/quant/format.h"

namespace moe {

/// [k][row] floats.
struct F32Format {
  static constexpr int kDepth = 1;
  static constexpr int kUnitDepth = 1;
  static constexpr int64_t kBlockBytes = 64;
  static constexpr int64_t kTrailerBytes = 0;
  static constexpr Dot kDot = Dot::kF32;
  static constexpr Scales kScales = Scales::kNone;

  template <class V>
  [[gnu::always_inline]] static inline void decode(const std::byte* block, const std::byte*, int,
                                                   typename V::F32* out) {
    out[0] = V::load_f32(reinterpret_cast<const float*>(block));
  }

  static void encode(const float* rows, int64_t depth, std::byte* panel) {
    auto* out = reinterpret_cast<float*>(panel);
    for (int64_t k = 0; k < depth; ++k) {
      for (int r = 0; r < kPanelRows; ++r) out[k * kPanelRows + r] = rows[r * depth + k];
    }
  }
  static float at(const std::byte* panel, int64_t, int row, int64_t k) {
    return reinterpret_cast<const float*>(panel)[k * kPanelRows + row];
  }
};

/// [k][row] halves; the dot product widens them.
struct F16Format {
  static constexpr int kDepth = 1;
  static constexpr int kUnitDepth = 1;
  static constexpr int64_t kBlockBytes = 32;
  static constexpr int64_t kTrailerBytes = 0;
  static constexpr Dot kDot = Dot::kF32;
  static constexpr Scales kScales = Scales::kNone;

  template <class V>
  [[gnu::always_inline]] static inline void decode(const std::byte* block, const std::byte*, int,
                                                   typename V::F32* out) {
    out[0] = V::load_f32(reinterpret_cast<const f16*>(block));
  }

  static void encode(const float* rows, int64_t depth, std::byte* panel) {
    auto* out = reinterpret_cast<f16*>(panel);
    for (int64_t k = 0; k < depth; ++k) {
      for (int r = 0; r < kPanelRows; ++r) out[k * kPanelRows + r] = to_f16(rows[r * depth + k]);
    }
  }
  static float at(const std::byte* panel, int64_t, int row, int64_t k) {
    return to_float(reinterpret_cast<const f16*>(panel)[k * kPanelRows + row]);
  }
};

/// [k / 2][row][k % 2]: pairs along the depth, as the pair dot product wants them.
struct Bf16Format {
  static constexpr int kDepth = 2;
  static constexpr int kUnitDepth = 2;
  static constexpr int64_t kBlockBytes = 64;
  static constexpr int64_t kTrailerBytes = 0;
  static constexpr Dot kDot = Dot::kBf16;
  static constexpr Scales kScales = Scales::kNone;

  template <class V>
  [[gnu::always_inline]] static inline void decode(const std::byte* block, const std::byte*, int,
                                                   typename V::F32* out) {
    const typename V::U8 pairs = V::load_bytes(block);
    out[0] = V::template pair<0>(pairs);
    out[1] = V::template pair<1>(pairs);
  }
  template <class V>
  [[gnu::always_inline]] static inline void weights(const std::byte* block, int,
                                                    typename V::U8* out) {
    out[0] = V::load_bytes(block);
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
