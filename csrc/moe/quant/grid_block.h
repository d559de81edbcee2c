#pragma once
// Blocks whose codes name points of a grid (quant/ggml_grids.h). Packing looks the points up: in
// memory a weight has bits of its own, so that decoding is shifts and at most a table of sixteen
// bytes, on every instruction set. Gathers of points from the file's codes take fewer bytes and
// two to three times as long.

#include <algorithm>
#include <cstring>

#include "moe/quant/codes.h"
#include "moe/quant/ggml_grids.h"
#include "moe/quant/group_scales.h"

namespace moe {

/// One row of a block as its file keeps it. A weight is d · (2 step + 1) · value · 2^e.
struct GridRow {
  f16 d;
  uint8_t step[16];
  uint16_t code[64];
  /// Of eight columns each: bit j is set where column j is negative. IQ1: bit 0 is set where the
  /// points are moved up by an eighth, else they are moved down.
  uint8_t signs[32];
};

inline constexpr int kGridDepth = 256;  // columns of a block

// A unit's codes for sixteen rows. Each has
//   kUnitDepth, kUnitBytes, kOffset
//   put(unit, row, first, fields)   writes a row's columns from `first` on; the bytes have to be
//                                   zero before
//   value(unit, row, k)             reads one
//   load<V>(unit, out)              the unit's words

/// Codes of three bits, a size and above it the sign, that stand for bytes of Table. Lines A, B, C
/// have two words each in the lower six bits of their bytes; the sizes of the last two words are
/// the upper bits of A and B, their signs those of C.
template <class Table>
struct SignedSizeCodes {
  static constexpr int kBits = 3;
  static constexpr int kUnitDepth = 32;
  static constexpr int64_t kUnitBytes = 192;

  static int get(const std::byte* unit, int row, int64_t k) {
    const auto line = [&](int64_t i) { return static_cast<int>(unit[64 * i + row * 4 + k % 4]); };
    const int w = static_cast<int>(k / 4);
    if (w < 6) return line(w / 2) >> (3 * (w % 2)) & 7;
    return line(w - 6) >> 6 | (line(2) >> w & 1) << 2;
  }
  /// The unit has to be zero before.
  static void set(std::byte* unit, int row, int64_t k, int code) {
    const auto put = [&](int64_t i, int bits) {
      unit[64 * i + row * 4 + k % 4] |= static_cast<std::byte>(bits);
    };
    const int w = static_cast<int>(k / 4);
    if (w < 6) return put(w / 2, code << (3 * (w % 2)));
    put(w - 6, (code & 3) << 6);
    put(2, code >> 2 << w);
  }
  static constexpr int kLargestByte = *std::max_element(Table::bytes(), Table::bytes() + 8);
  static int byte_of(int code) { return Table::bytes()[code]; }
  template <class V>
  [[gnu::always_inline]] static inline typename V::U8 word(const std::byte* unit, int w) {
    const auto line = [&](int i) { return V::load_bytes(unit + 64 * i); };
    const auto code = w < 6 ? bit_field(line(w / 2), 3 * (w % 2), 255)
                            : or_bytes(bit_field(line(w - 6), 6, 3), bit_field(line(2), w - 2, 4));
    return lookup8(code, Table::bytes());
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* unit, typename V::U8* out) {
#pragma GCC unroll 8
    for (int w = 0; w < kUnitDepth / 4; ++w) out[w] = word<V>(unit, w);
  }
};

/// Points with signs, as codes of Codes.
template <const auto& kGrid, class Codes, int offset>
struct SignedPoints : Codes {
  static constexpr int kOffset = offset;

  struct ValueCodes {
    uint8_t of[256];  // a value plus 128
    ValueCodes() {
      for (int code = 0; code < 1 << Codes::kBits; ++code) {
        of[Codes::byte_of(code) - kOffset + 128] = static_cast<uint8_t>(code);
      }
    }
  };
  static void put(std::byte* unit, int r, int first, const GridRow& row) {
    static const ValueCodes kCodes;
    for (int k = first; k < first + Codes::kUnitDepth; ++k) {
      const int size = kGrid.byte(row.code[k / kGrid.kWidth], k % kGrid.kWidth) - 128;
      const int value = (row.signs[k / 8] >> (k % 8) & 1) != 0 ? -size : size;
      Codes::set(unit, r, k - first, kCodes.of[value + 128]);
    }
  }
  static int value(const std::byte* unit, int r, int k) {
    return Codes::byte_of(Codes::get(unit, r, k)) - kOffset;
  }
};

/// Points of IQ1: two bits for −1, 0 or 1, then a mask of the rows that are moved up for every kRun
/// columns. Bytes are eight times the value.
template <int kRun>
struct MovedPoints {
  static constexpr int kUnitDepth = 32;
  static constexpr int kLargestByte = 3 * 8 + 2;
  static constexpr int kOffset = 9;  // 8 for a value's offset, and moved down
  static constexpr int64_t kMasksAt = 128;
  static constexpr int64_t kUnitBytes = kMasksAt + 2 * (kUnitDepth / kRun);
  using Fields = Plane<2, kUnitDepth / 4>;

  static void put(std::byte* unit, int r, int first, const GridRow& row) {
    for (int k = 0; k < kUnitDepth; ++k) {
      const int column = first + k;
      Fields::set(unit, r, k, kIq1Grid.byte(row.code[column / 8], column % 8) / 8 - 15);
      if (k % kRun == 0) {
        std::byte* mask = unit + kMasksAt + 2 * (k / kRun) + r / 8;
        *mask |= static_cast<std::byte>((row.signs[column / 8] & 1) << (r % 8));
      }
    }
  }
  static int value(const std::byte* unit, int r, int k) {
    const int up = static_cast<int>(unit[kMasksAt + 2 * (k / kRun) + r / 8]) >> (r % 8) & 1;
    return 8 * Fields::get(unit, r, k) + 2 * up - kOffset;
  }
  template <class V>
  [[gnu::always_inline]] static inline typename V::U8 word(const std::byte* unit, int w) {
    uint16_t rows;
    std::memcpy(&rows, unit + kMasksAt + 2 * (w / (kRun / 4)), 2);
    const auto moved = select(V::lane_mask(rows), V::fill_i32(0x02020202), V::fill_i32(0));
    return or_bytes(Fields::template load<V>(unit, w, 3), as_bytes(moved));
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* unit, typename V::U8* out) {
#pragma GCC unroll 8
    for (int w = 0; w < kUnitDepth / 4; ++w) out[w] = word<V>(unit, w);
  }
};

/// The scales of a block, as in group_scales.h, but of a GridRow and from the whole block's start:
/// a nibble for each of kGroups groups, d · (2 s + 1) · 2^−kDown.
template <class Points, int kGroups, int kDown>
struct NibbleSteps {
  static constexpr int64_t kAt = kGridDepth / Points::kUnitDepth * Points::kUnitBytes;
  static constexpr int64_t kBytes = 32 + 8 * kGroups;
  static constexpr float kFactor = 1.0f / (1 << kDown);
  static void put(std::byte* block, int r, const GridRow& row) {
    put_row(block + kAt, r, row.d);
    for (int g = 0; g < kGroups; ++g) {
      block[kAt + 32 + 16 * (g / 2) + r] |= static_cast<std::byte>(row.step[g] << (g % 2 * 4));
    }
  }
  static float read(const std::byte* block, int r, int g) {
    const int s = get_row<uint8_t>(block + kAt + 32 + 16 * (g / 2), r) >> (g % 2 * 4) & 15;
    return to_float(get_row<f16>(block + kAt, r)) * (static_cast<float>(2 * s + 1) * kFactor);
  }
  template <class V>
  [[gnu::always_inline]] static inline typename V::F32 load(const std::byte* block, int g) {
    const auto pairs =
        V::widen_u8(reinterpret_cast<const uint8_t*>(block + kAt + 32 + 16 * (g / 2)));
    const auto twice = g % 2 == 0 ? shift_left(pairs, 1) : shift_right(pairs, 3);
    const auto steps = add(and_bits(twice, V::fill_i32(30)), V::fill_i32(1));
    const auto d = V::load_f32(reinterpret_cast<const f16*>(block + kAt));
    // A power of two: it does not matter where it is multiplied.
    return mul(mul(d, V::fill(kFactor)), to_f32(steps));
  }
};

/// A block of 256 columns in groups of `group`. Self adds
///   quantise(x, row)    one row of a block from floats
///   kFileBytes, read(file, row)
template <class Self, int group, class Points, int kDown>
struct GridBlock {
  using Steps = NibbleSteps<Points, kGridDepth / group, kDown>;
  static constexpr int kDepth = kGridDepth, kGroup = group, kUnitDepth = Points::kUnitDepth;
  static constexpr int64_t kUnitBytes = Points::kUnitBytes;
  static constexpr int64_t kScalesAt = kDepth / kUnitDepth * kUnitBytes;
  static constexpr int64_t kBlockBytes = kScalesAt + Steps::kBytes;
  static constexpr int64_t kTrailerBytes = 0;
  static constexpr Dot kDot = Dot::kU8S8;
  static constexpr Scales kScales = Scales::kGroup;
  static constexpr bool kMin = false, kHasZero = false;
  static constexpr int kOffset = Points::kOffset, kLargestByte = Points::kLargestByte;

  template <class V>
  [[gnu::always_inline]] static inline void weights(const std::byte* unit, typename V::U8* out) {
    Points::template load<V>(unit, out);
  }
  template <class V>
  [[gnu::always_inline]] static inline typename V::U8 word(const std::byte* unit, int w) {
    return Points::template word<V>(unit, w);
  }
  template <class V>
  [[gnu::always_inline]] static inline void values(const std::byte* unit, typename V::F32* out) {
    typename V::U8 words[kUnitDepth / 4];
    Points::template load<V>(unit, words);
#pragma GCC unroll 8
    for (int w = 0; w < kUnitDepth / 4; ++w) byte_values<V>(words[w], kOffset, out + 4 * w);
  }
  template <class V>
  [[gnu::always_inline]] static inline void scale(const std::byte* block, int g,
                                                  typename V::F32& factor, typename V::F32&) {
    factor = Steps::template load<V>(block, g);
  }

  template <class Fill>
  static void each_row(int64_t blocks, std::byte* panel, Fill fill) {
    for (int64_t b = 0; b < blocks; ++b, panel += kBlockBytes) {
      std::memset(panel, 0, static_cast<size_t>(kBlockBytes));
      for (int r = 0; r < kPanelRows; ++r) {
        GridRow row{};
        fill(r, b, row);
        for (int u = 0; u < kDepth / kUnitDepth; ++u) {
          Points::put(panel + u * kUnitBytes, r, u * kUnitDepth, row);
        }
        Steps::put(panel, r, row);
      }
    }
  }
  static void encode(const float* rows, int64_t cols, std::byte* panel) {
    each_row(cols / kDepth, panel, [&](int r, int64_t b, GridRow& row) {
      Self::quantise(rows + r * cols + b * kDepth, row);
    });
  }
  static void repack(const std::byte* const* rows, int64_t blocks, std::byte* panel) {
    each_row(blocks, panel, [&](int r, int64_t b, GridRow& row) {
      Self::read(reinterpret_cast<const uint8_t*>(rows[r]) + b * Self::kFileBytes, row);
    });
  }
  static float at(const std::byte* panel, int64_t, int row, int64_t k) {
    const std::byte* block = panel + k / kDepth * kBlockBytes;
    const int column = static_cast<int>(k % kDepth);
    const int value =
        Points::value(block + column / kUnitDepth * kUnitBytes, row, column % kUnitDepth);
    return static_cast<float>(value) * Steps::read(block, row, column / kGroup);
  }
};

}  // namespace moe
