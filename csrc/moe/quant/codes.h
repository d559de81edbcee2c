#pragma once
// How the small integers of a block lie in memory: in planes of bit fields, so that one load, one
// shift and one mask give the operands of a word (four columns of sixteen rows, bytes
// [row][k % 4]).

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "moe/quant/format.h"

namespace moe {

/// A word's four bytes minus `offset`, as floats.
template <class V>
[[gnu::always_inline]] static inline void byte_values(typename V::U8 bytes, int offset,
                                                      typename V::F32* out) {
  const auto zero = V::fill(static_cast<float>(offset));
  out[0] = sub(V::template byte<0>(bytes), zero);
  out[1] = sub(V::template byte<1>(bytes), zero);
  out[2] = sub(V::template byte<2>(bytes), zero);
  out[3] = sub(V::template byte<3>(bytes), zero);
}

/// Fields of kBits bits for kWords words. A line of 64 bytes holds 8 / kBits words: word w lies in
/// line w / (8 / kBits), at bit kBits · (w % (8 / kBits)) of every byte.
template <int kBits, int kWords>
struct Plane {
  static constexpr int kPerLine = 8 / kBits;
  static constexpr int64_t kBytes = int64_t{kWords} / kPerLine * 64;
  static constexpr int kMask = (1 << kBits) - 1;

  static int64_t index(int row, int64_t k) { return k / 4 / kPerLine * 64 + row * 4 + k % 4; }
  static int shift(int64_t k) { return static_cast<int>(k / 4 % kPerLine) * kBits; }
  static int get(const std::byte* plane, int row, int64_t k) {
    return (static_cast<int>(plane[index(row, k)]) >> shift(k)) & kMask;
  }
  /// The plane has to be zero before.
  static void set(std::byte* plane, int row, int64_t k, int value) {
    plane[index(row, k)] |= static_cast<std::byte>((value & kMask) << shift(k));
  }
  static void clear(std::byte* plane, int row, int64_t k) {
    plane[index(row, k)] &= ~static_cast<std::byte>(kMask << shift(k));
  }
  /// Word w's fields, moved up by `to` bits.
  template <class V>
  [[gnu::always_inline]] static inline typename V::U8 load(const std::byte* plane, int w, int to) {
    return bit_field(V::load_bytes(plane + w / kPerLine * 64), w % kPerLine * kBits - to,
                     static_cast<uint8_t>(kMask << to));
  }
};

/// Integers of kBits bits: unit after unit of kUnitDepth columns, each unit a plane or two (low
/// bits, then high ones). The byte that the dot product gets is the integer << kShift.
template <int bits, int kShift = 0>
struct Codes {
  static constexpr int kBits = bits, kLargestByte = ((1 << bits) - 1) << kShift;
  static constexpr int kHighBits = bits == 8 || bits == 4 || bits <= 2 ? 0 : bits == 6 ? 2 : 1;
  static constexpr int kLowBits = bits - kHighBits;
  static constexpr int kWords = 8 / (kHighBits != 0 ? kHighBits : kLowBits);
  static constexpr int kUnitDepth = 4 * kWords;
  static constexpr int64_t kUnitBytes = int64_t{kUnitDepth} * kPanelRows * bits / 8;
  using Low = Plane<kLowBits, kWords>;
  using High = Plane<kHighBits == 0 ? 8 : kHighBits, kWords>;

  static int get(const std::byte* block, int row, int64_t k) {
    const std::byte* unit = block + k / kUnitDepth * kUnitBytes;
    int code = Low::get(unit, row, k % kUnitDepth);
    if constexpr (kHighBits != 0) {
      code |= High::get(unit + Low::kBytes, row, k % kUnitDepth) << kLowBits;
    }
    return code;
  }
  static void set(std::byte* block, int row, int64_t k, int code) {
    std::byte* unit = block + k / kUnitDepth * kUnitBytes;
    Low::set(unit, row, k % kUnitDepth, code);
    if constexpr (kHighBits != 0) {
      High::set(unit + Low::kBytes, row, k % kUnitDepth, code >> kLowBits);
    }
  }
  static void replace(std::byte* block, int row, int64_t k, int code) {
    std::byte* unit = block + k / kUnitDepth * kUnitBytes;
    Low::clear(unit, row, k % kUnitDepth);
    if constexpr (kHighBits != 0) High::clear(unit + Low::kBytes, row, k % kUnitDepth);
    set(block, row, k, code);
  }
  /// The byte that a code becomes, and the code whose byte is the nearest to q + offset.
  static int byte_of(int code) { return code << kShift; }
  static int nearest(float q, int offset) {
    constexpr auto kLast = static_cast<float>((1 << bits) - 1);
    // Added to the rounded number: q may be a tie, and the offset even.
    const auto zero = static_cast<float>(offset);
    const float code = kShift == 0 ? std::nearbyint(q) + zero : std::nearbyint((q + zero) / 2);
    static_assert(kShift <= 1);
    return static_cast<int>(std::min(std::max(0.0f, code), kLast));
  }
  template <class V>
  [[gnu::always_inline]] static inline typename V::U8 word(const std::byte* unit, int w) {
    if constexpr (bits == 8) return V::load_bytes(unit);
    auto fields = Low::template load<V>(unit, w, kShift);
    if constexpr (kHighBits != 0) {
      const auto high = High::template load<V>(unit + Low::kBytes, w, kLowBits + kShift);
      fields = or_bytes(fields, high);
    }
    return fields;
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* unit, typename V::U8* out) {
#pragma GCC unroll 8
    for (int w = 0; w < kWords; ++w) out[w] = word<V>(unit, w);
  }
};

/// Codes of at most four bits that stand for the sixteen bytes of Table::bytes().
template <int bits, class Table>
struct TableCodes : Codes<bits> {
  static constexpr int kLargestByte = *std::max_element(Table::bytes(), Table::bytes() + 16);
  static int byte_of(int code) { return Table::bytes()[code]; }
  static int nearest(float q, int offset) {
    const auto distance = [&](int code) {
      return std::fabs(static_cast<float>(byte_of(code) - offset) - q);
    };
    int best = 0;
    for (int code = 1; code < (1 << bits); ++code) {
      // Ties go to the even code, as in every rounding of floats.
      if (distance(code) < distance(best) ||
          (distance(code) == distance(best) && code % 2 == 0 && best % 2 != 0)) {
        best = code;
      }
    }
    return best;
  }
  template <class V>
  [[gnu::always_inline]] static inline typename V::U8 word(const std::byte* unit, int w) {
    return lookup16(Codes<bits>::template word<V>(unit, w), Table::bytes());
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* unit, typename V::U8* out) {
#pragma GCC unroll 8
    for (int w = 0; w < Codes<bits>::kWords; ++w) out[w] = word<V>(unit, w);
  }
};

}  // namespace moe
