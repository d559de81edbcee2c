#pragma once
// Blocks whose codes name points of a grid (quant/ggml_grids.h): how a point's code, its signs and
// the scales lie in memory, in as many bits as in a GGUF file.

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

inline constexpr int kGridUnit = 32;  // columns
inline constexpr int kGridWords = kGridUnit / 4;

/// Nibble `row` of the sixteen at `at`.
static inline int get_nibble(const std::byte* at, int row) {
  return static_cast<int>(word_at(at) >> (4 * row) & 15);
}
static inline void or_nibble(std::byte* at, int row, int value) {
  at[row / 2] |= static_cast<std::byte>(value << (row % 2 * 4));
}

// The parts of a unit, for sixteen rows. Each has
//   kBytes                    what it takes
//   put(at, row, i, ...)      writes part i of a row; the bytes have to be zero before
//   get(at, row, i)           reads it

/// kCount fields of kBits bits, in bytes [row]; the upper bits of a code are the kTake lowest.
template <int kBits, int kCount, int kTake = kBits>
struct HighFields {
  static constexpr int kPerByte = 8 / kBits;
  static constexpr int64_t kBytes = 16 * kCount / kPerByte;
  static void put(std::byte* at, int row, int i, int value) {
    at[16 * (i / kPerByte) + row] |= static_cast<std::byte>(value << (i % kPerByte * kBits));
  }
  static int get(const std::byte* at, int row, int i) {
    return static_cast<int>(at[16 * (i / kPerByte) + row]) >> (i % kPerByte * kBits) &
           ((1 << kBits) - 1);
  }
  /// Sixteen rows' field i as what it adds to the low byte of their codes.
  template <class V>
  [[gnu::always_inline]] static inline typename V::I32 load(const std::byte* at, int i) {
    const auto fields = V::widen_u8(reinterpret_cast<const uint8_t*>(at + 16 * (i / kPerByte)));
    return and_bits(shift_left(fields, 8 - i % kPerByte * kBits),
                    V::fill_i32(((1 << kTake) - 1) << 8));
  }
};

/// One bit for each of kCount codes, in masks of sixteen rows.
template <int kCount>
struct HighMasks {
  static constexpr int64_t kBytes = 2 * kCount;
  static void put(std::byte* at, int row, int i, int value) {
    at[2 * i + row / 8] |= static_cast<std::byte>(value << (row % 8));
  }
  static int get(const std::byte* at, int row, int i) {
    return static_cast<int>(at[2 * i + row / 8]) >> (row % 8) & 1;
  }
  template <class V>
  [[gnu::always_inline]] static inline typename V::I32 load(const std::byte* at, int i) {
    uint16_t rows;
    std::memcpy(&rows, at + 2 * i, 2);
    return select(V::lane_mask(rows), V::fill_i32(256), V::fill_i32(0));
  }
};

struct NoHighBits {
  static constexpr int64_t kBytes = 0;
  static void put(std::byte*, int, int, int) {}
  static int get(const std::byte*, int, int) { return 0; }
};

/// Eight signs for eight columns: for each word a bit of each of its 64 bytes.
struct EightSigns {
  static constexpr int64_t kBytes = 8 * kGridWords;
  static void put(std::byte* at, int row, int i, int signs) {
    or_nibble(at + 16 * i, row, signs & 15);
    or_nibble(at + 16 * i + 8, row, signs >> 4);
  }
  static int get(const std::byte* at, int row, int i) {
    return get_nibble(at + 16 * i, row) | get_nibble(at + 16 * i + 8, row) << 4;
  }
  [[gnu::always_inline]] static inline void load(const std::byte* at, uint64_t* words) {
#pragma GCC unroll 8
    for (int w = 0; w < kGridWords; ++w) words[w] = word_at(at + 8 * w);
  }
};

/// Seven signs for eight columns, the eighth makes the number of negative ones even. Four words
/// hold the first nibbles, three the rest: nibble i of three bits, and in the fourth bit a bit of
/// the last.
struct SevenSigns {
  static constexpr int64_t kBytes = 8 * 7;
  static void put(std::byte* at, int row, int i, int signs) {
    or_nibble(at + 8 * i, row, signs & 15);
    const int rest = signs >> 4 & 7;
    if (i < 3) {
      or_nibble(at + 32 + 8 * i, row, rest);
    } else {
      for (int bit = 0; bit < 3; ++bit) or_nibble(at + 32 + 8 * bit, row, (rest >> bit & 1) << 3);
    }
  }
  static int get(const std::byte* at, int row, int i) {
    uint64_t words[kGridWords];
    load(at, words);
    return static_cast<int>((words[2 * i] >> (4 * row) & 15) | (words[2 * i + 1] >> (4 * row) & 15)
                                                                   << 4);
  }
  [[gnu::always_inline]] static inline void load(const std::byte* at, uint64_t* words) {
    constexpr uint64_t kOnes = 0x1111111111111111u;
    const uint64_t rest[] = {word_at(at + 32), word_at(at + 40), word_at(at + 48)};
    words[1] = rest[0] & 7 * kOnes;
    words[3] = rest[1] & 7 * kOnes;
    words[5] = rest[2] & 7 * kOnes;
    words[7] = (rest[0] >> 3 & kOnes) | (rest[1] >> 2 & 2 * kOnes) | (rest[2] >> 1 & 4 * kOnes);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const uint64_t first = word_at(at + 8 * i);
      uint64_t odd = first ^ words[2 * i + 1];
      odd ^= odd >> 2;
      odd ^= odd >> 1;
      words[2 * i] = first;
      words[2 * i + 1] |= (odd & kOnes) << 3;
    }
  }
};

/// A unit of points with signs: low bytes of the codes [code][row], upper bits, signs.
template <const auto& kGrid, class High, class Signs>
struct SignedPoints {
  static constexpr int kWidth = kGrid.kWidth;
  static constexpr int kOffset = 128;
  static constexpr int kCodes = kGridUnit / kWidth;
  static constexpr int64_t kHighAt = 16 * kCodes;
  static constexpr int64_t kSignsAt = kHighAt + High::kBytes;
  static constexpr int64_t kBytes = kSignsAt + Signs::kBytes;

  /// Unit u of a block's row.
  static void put(std::byte* unit, int r, int u, const GridRow& row) {
    for (int i = 0; i < kCodes; ++i) {
      const int code = row.code[u * kCodes + i];
      unit[16 * i + r] = static_cast<std::byte>(code & 255);
      High::put(unit + kHighAt, r, i, code >> 8);
    }
    for (int i = 0; i < 4; ++i) Signs::put(unit + kSignsAt, r, i, row.signs[4 * u + i]);
  }
  static int value(const std::byte* unit, int r, int k) {
    const int i = k / kWidth;
    const int code = static_cast<int>(unit[16 * i + r]) | High::get(unit + kHighAt, r, i) << 8;
    const int size = kGrid.byte(code, k % kWidth) - kOffset;
    return (Signs::get(unit + kSignsAt, r, k / 8) >> (k % 8) & 1) != 0 ? -size : size;
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* unit, typename V::U8* out) {
    uint64_t signs[kGridWords];
    Signs::load(unit + kSignsAt, signs);
#pragma GCC unroll 8
    for (int i = 0; i < kCodes; ++i) {
      auto code = V::widen_u8(reinterpret_cast<const uint8_t*>(unit + 16 * i));
      if constexpr (High::kBytes != 0) {
        code = add(code, High::template load<V>(unit + kHighAt, i));
      }
      if constexpr (kWidth == 8) {
        const auto points = gather(kGrid.points, code);
        out[2 * i] = negate_bytes(points.low, signs[2 * i]);
        out[2 * i + 1] = negate_bytes(points.high, signs[2 * i + 1]);
      } else {
        out[i] = negate_bytes(gather(kGrid.points, code), signs[i]);
      }
    }
  }
};

/// A unit of IQ1: low bytes of four codes, then for each a nibble with three upper bits and a
/// fourth that is `up` of the code, or of all four (the last one's, where kShared: the other three
/// are the unit's step).
template <bool kShared>
struct MovedPoints {
  static constexpr int kWidth = 8;
  // A grid's byte is 128 + 8 g: one below zero's is moved down, with a bit more moved up.
  static constexpr int kOffset = 129;
  static constexpr int kCodes = 4;
  static constexpr int64_t kHighAt = 16 * kCodes;
  static constexpr int64_t kBytes = kHighAt + 32;
  using High = HighFields<4, kCodes, 3>;

  static void put(std::byte* unit, int r, int u, const GridRow& row) {
    for (int i = 0; i < kCodes; ++i) {
      const int code = row.code[u * kCodes + i];
      const bool step = kShared && i < 3;
      const int last = (step ? row.step[u] >> i : row.signs[4 * u + i]) & 1;
      unit[16 * i + r] = static_cast<std::byte>(code & 255);
      High::put(unit + kHighAt, r, i, code >> 8 | last << 3);
    }
  }
  static int value(const std::byte* unit, int r, int k) {
    const int i = k / 8, high = High::get(unit + kHighAt, r, i);
    const int up = High::get(unit + kHighAt, r, kShared ? 3 : i) >> 3;
    const int code = static_cast<int>(unit[16 * i + r]) | (high & 7) << 8;
    return kIq1Grid.byte(code, k % 8) - kOffset + 2 * up;
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* unit, typename V::U8* out) {
#pragma GCC unroll 4
    for (int i = 0; i < kCodes; ++i) {
      const auto low = V::widen_u8(reinterpret_cast<const uint8_t*>(unit + 16 * i));
      const auto points =
          gather(kIq1Grid.points, add(low, High::template load<V>(unit + kHighAt, i)));
      // The bit copied to all places above, then the second bit of each byte.
      const int mover = kShared ? 3 : i;
      const auto nibbles =
          V::widen_u8(reinterpret_cast<const uint8_t*>(unit + kHighAt + 16 * (mover / 2)));
      const auto up = shift_right(shift_left(nibbles, 28 - mover % 2 * 4), 31);
      const auto moved = as_bytes(and_bits(up, V::fill_i32(0x02020202)));
      out[2 * i] = or_bytes(points.low, moved);
      out[2 * i + 1] = or_bytes(points.high, moved);
    }
  }
};

// The scales of a block, as in group_scales.h, but of a GridRow and from the whole block's start.

/// A nibble for each of kGroups groups: d · (2 s + 1) · 2^−kDown.
template <int kGroups, int kDown, int64_t kAt>
struct NibbleSteps {
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
    return mul(d, mul(to_f32(steps), V::fill(kFactor)));
  }
};

/// IQ1_S: three bits of a group stand in its unit, d behind all of them: d · (2 s + 1) / 8.
struct UnitSteps {
  using Points = MovedPoints<true>;
  static constexpr int64_t kAt = 8 * Points::kBytes;
  static constexpr int64_t kBytes = 32;
  static void put(std::byte* block, int r, const GridRow& row) { put_row(block + kAt, r, row.d); }
  static float read(const std::byte* block, int r, int g) {
    const std::byte* nibbles = block + g * Points::kBytes + Points::kHighAt;
    int s = 0;
    for (int i = 0; i < 3; ++i) s |= (Points::High::get(nibbles, r, i) >> 3) << i;
    return to_float(get_row<f16>(block + kAt, r)) * (static_cast<float>(2 * s + 1) / 8.0f);
  }
  template <class V>
  [[gnu::always_inline]] static inline typename V::F32 load(const std::byte* block, int g) {
    const std::byte* nibbles = block + g * Points::kBytes + Points::kHighAt;
    const auto first = V::widen_u8(reinterpret_cast<const uint8_t*>(nibbles));
    const auto second = V::widen_u8(reinterpret_cast<const uint8_t*>(nibbles + 16));
    const auto twice = add(add(and_bits(shift_right(first, 2), V::fill_i32(2)),
                               and_bits(shift_right(first, 5), V::fill_i32(4))),
                           and_bits(second, V::fill_i32(8)));
    const auto d = V::load_f32(reinterpret_cast<const f16*>(block + kAt));
    return mul(d, mul(to_f32(add(twice, V::fill_i32(1))), V::fill(0.125f)));
  }
};

/// IQ1_M: d, then of sixteen groups the two low bits of each, then the third: d · (2 s + 1) / 8.
struct SplitSteps {
  static constexpr int64_t kAt = 8 * MovedPoints<false>::kBytes;
  static constexpr int64_t kBytes = 32 + 16 * 6;
  static constexpr int64_t kThirdAt = kAt + 32 + 16 * 4;
  using Low = HighFields<2, 16>;
  using Third = HighFields<1, 16>;
  static void put(std::byte* block, int r, const GridRow& row) {
    put_row(block + kAt, r, row.d);
    for (int g = 0; g < 16; ++g) {
      Low::put(block + kAt + 32, r, g, row.step[g] & 3);
      Third::put(block + kThirdAt, r, g, row.step[g] >> 2);
    }
  }
  static float read(const std::byte* block, int r, int g) {
    const int s = Low::get(block + kAt + 32, r, g) | Third::get(block + kThirdAt, r, g) << 2;
    return to_float(get_row<f16>(block + kAt, r)) * (static_cast<float>(2 * s + 1) / 8.0f);
  }
  template <class V>
  [[gnu::always_inline]] static inline typename V::F32 load(const std::byte* block, int g) {
    // Both come as what they add to a code's low byte: 256 for a step.
    const auto low = Low::load<V>(block + kAt + 32, g);
    const auto third = shift_left(Third::load<V>(block + kThirdAt, g), 2);
    const auto steps = to_f32(add(low, third));
    const auto d = V::load_f32(reinterpret_cast<const f16*>(block + kAt));
    return mul(d, add(mul(steps, V::fill(0x1p-10f)), V::fill(0.125f)));
  }
};

/// A block of 256 columns in groups of `group`. Self adds
///   quantise(x, row)    one row of a block from floats
///   kFileBytes, read(file, row)
template <class Self, int group, class Points, class Steps>
struct GridBlock {
  static constexpr int kDepth = 256, kGroup = group, kUnitDepth = kGridUnit;
  static constexpr int64_t kUnitBytes = Points::kBytes;
  static constexpr int64_t kScalesAt = kDepth / kUnitDepth * kUnitBytes;
  static constexpr int64_t kBlockBytes = kScalesAt + Steps::kBytes;
  static constexpr int64_t kTrailerBytes = 0;
  static constexpr Dot kDot = Dot::kU8S8;
  static constexpr Scales kScales = Scales::kGroup;
  static constexpr bool kMin = false, kHasZero = false;
  static constexpr int kOffset = Points::kOffset;

  template <class V>
  [[gnu::always_inline]] static inline void weights(const std::byte* unit, typename V::U8* out) {
    Points::template load<V>(unit, out);
  }
  template <class V>
  [[gnu::always_inline]] static inline void values(const std::byte* unit, typename V::F32* out) {
    typename V::U8 words[kGridWords];
    Points::template load<V>(unit, words);
#pragma GCC unroll 8
    for (int w = 0; w < kGridWords; ++w) byte_values<V>(words[w], kOffset, out + 4 * w);
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
          Points::put(panel + u * kUnitBytes, r, u, row);
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
