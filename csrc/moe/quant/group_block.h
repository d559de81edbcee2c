#pragma once
// Integers in groups that share a scale: codes (quant/codes.h), then scales (quant/group_scales.h).

#include <algorithm>
#include <cmath>
#include <cstring>

#include "moe/quant/codes.h"
#include "moe/quant/group_scales.h"

namespace moe {

/// A block of `depth` columns in groups of `group`. Self adds kOffset and
///   quantise(x, codes, scales)       one row of a block from floats
/// and, for formats of GGUF files, kFileBytes and
///   read(file, codes, scales)        the same from a block's bytes
template <class Self, int depth, int group, class BlockCodes, class BlockScales>
struct GroupBlock {
  using Codes = BlockCodes;
  using Scale = BlockScales;
  using Row = typename Scale::Row;
  static constexpr int kDepth = depth;
  static constexpr int kGroup = group;
  static constexpr int kUnitDepth = Codes::kUnitDepth;
  static constexpr int64_t kUnitBytes = Codes::kUnitBytes;
  static constexpr int64_t kScalesAt = depth / kUnitDepth * kUnitBytes;
  static constexpr int64_t kBlockBytes = kScalesAt + Scale::kBytes;
  static constexpr int64_t kTrailerBytes = 0;
  static constexpr Dot kDot = Dot::kU8S8;
  static constexpr Scales kScales = Scales::kGroup;
  static constexpr bool kMin = Scale::kMin;
  static constexpr bool kHasZero = true;  // whether 0 is a value, whatever the scale
  static constexpr int kLargestByte = Codes::kLargestByte;

  template <class V>
  [[gnu::always_inline]] static inline void weights(const std::byte* unit, typename V::U8* out) {
    Codes::template load<V>(unit, out);
  }
  template <class V>
  [[gnu::always_inline]] static inline typename V::U8 word(const std::byte* unit, int w) {
    return Codes::template word<V>(unit, w);
  }
  template <class V>
  [[gnu::always_inline]] static inline void values(const std::byte* unit, typename V::F32* out) {
    typename V::U8 words[kUnitDepth / 4];
    Codes::template load<V>(unit, words);
#pragma GCC unroll 8
    for (int w = 0; w < kUnitDepth / 4; ++w) {
      byte_values<V>(words[w], Self::kOffset, out + 4 * w);
    }
  }
  template <class V>
  [[gnu::always_inline]] static inline void scale(const std::byte* block, int g,
                                                  typename V::F32& factor, typename V::F32& min) {
    Scale::template load<V>(block + kScalesAt, g, factor, min);
  }

  /// Where scales have two levels a range's sum of steps times codes times activations is an exact
  /// integer: in floats if none of their partial sums exceeds what those hold.
  static constexpr Steps step_sums() {
    if constexpr (requires { Scale::kLargestStep; }) {
      constexpr int64_t kCode = std::max(Self::kOffset, Codes::kLargestByte - Self::kOffset);
      constexpr int64_t kLargest = kCode * Scale::kLargestStep * 127 * kScaleBlock;
      static_assert(kLargest < int64_t{1} << 31);
      return kLargest < 1 << 24   ? Steps::kFloats
             : kLargest < 1 << 25 ? Steps::kHalves
                                  : Steps::kIntegers;
    }
    return Steps::kNone;
  }
  template <class V>
  [[gnu::always_inline]] static inline void steps(const std::byte* block, int g, typename V::I32& s,
                                                  typename V::I32& m) {
    Scale::template steps<V>(block + kScalesAt, g, s, m);
  }
  template <class V>
  [[gnu::always_inline]] static inline auto step_bytes(const std::byte* block, int g) {
    return Scale::template step_bytes<V>(block + kScalesAt, g);
  }
  template <class V>
  [[gnu::always_inline]] static inline auto min_bytes(const std::byte* block, int g) {
    return Scale::template min_bytes<V>(block + kScalesAt, g);
  }
  template <class V>
  [[gnu::always_inline]] static inline void units(const std::byte* block, typename V::F32& d,
                                                  typename V::F32& least) {
    Scale::template units<V>(block + kScalesAt, d, least);
  }

  template <class Fill>
  static void each_row(int64_t blocks, std::byte* panel, Fill fill) {
    uint8_t codes[kDepth] = {};
    for (int64_t b = 0; b < blocks; ++b, panel += kBlockBytes) {
      std::memset(panel, 0, static_cast<size_t>(kBlockBytes));
      for (int r = 0; r < kPanelRows; ++r) {
        Row scales{};
        fill(r, b, codes, scales);
        for (int k = 0; k < kDepth; ++k) Codes::set(panel, r, k, codes[k]);
        Scale::put(panel + kScalesAt, r, scales);
      }
    }
  }
  static void encode(const float* rows, int64_t cols, std::byte* panel) {
    each_row(cols / kDepth, panel, [&](int r, int64_t b, uint8_t* codes, Row& scales) {
      Self::quantise(rows + r * cols + b * kDepth, codes, scales);
    });
  }
  static void repack(const std::byte* const* rows, int64_t blocks, std::byte* panel) {
    each_row(blocks, panel, [&](int r, int64_t b, uint8_t* codes, Row& scales) {
      Self::read(reinterpret_cast<const uint8_t*>(rows[r]) + b * Self::kFileBytes, codes, scales);
    });
  }
  /// Not for formats whose codes come together (Self::kGridPoints).
  static float round(std::byte* panel, int64_t depth_of_panel, int row, int64_t k, float x)
    requires(!requires { Self::kGridPoints; })
  {
    std::byte* block = panel + k / kDepth * kBlockBytes;
    const int g = static_cast<int>(k % kDepth) / kGroup;
    const ScaleMin by = Scale::read(block + kScalesAt, row, g);
    const float q = by.scale != 0.0f ? (x - by.min) / by.scale : 0.0f;
    Codes::replace(block, row, k % kDepth, Codes::nearest(q, Self::kOffset));
    return at(panel, depth_of_panel, row, k);
  }
  static float at(const std::byte* panel, int64_t, int row, int64_t k) {
    const std::byte* block = panel + k / kDepth * kBlockBytes;
    const int q = Codes::byte_of(Codes::get(block, row, k % kDepth)) - Self::kOffset;
    const int g = static_cast<int>(k % kDepth) / kGroup;
    const ScaleMin by = Scale::read(block + kScalesAt, row, g);
    const float value = static_cast<float>(q) * by.scale;
    return kMin ? value + by.min : value;
  }
};

}  // namespace moe
