#pragma once
// The scales of a block's groups: what they are for one row (Row), how sixteen rows' lie in memory,
// and how they are read. A weight is scale · (code − offset), plus min where kMin.

#include <cstring>

#include "moe/quant/format.h"

namespace moe {

// What every struct here has:
//   Row                           the fields of one row of a block, as files keep them
//   kBytes, kMin                  bytes of sixteen rows; whether there is a minimum
//   put(at, row, fields)          writes one row; `at` is where the block's scales are
//   read(at, row, g)              group g's scale and minimum of one row
//   load<V>(at, g, scale, min)    the same for sixteen rows
// and those in two levels, d · s and −dmin · m
//   kLargestStep, steps<V>(at, g, s, m)   the integers of a group
//   step_bytes<V>(at, g), min_bytes<V>(at, g)   the same, a byte for each row
//   units<V>(at, d, least)                the block's factors of them

/// Sixteen rows of T, one after the other.
template <class T>
static inline void put_row(std::byte* at, int row, T value) {
  std::memcpy(at + row * sizeof(T), &value, sizeof(T));
}
template <class T>
static inline T get_row(const std::byte* at, int row) {
  T value;
  std::memcpy(&value, at + row * sizeof(T), sizeof(T));
  return value;
}

struct ScaleMin {
  float scale, min;
};

/// One f16 scale.
struct HalfScale {
  using Row = f16;
  static constexpr int64_t kBytes = 32;
  static constexpr bool kMin = false;
  static void put(std::byte* at, int row, Row d) { put_row(at, row, d); }
  static ScaleMin read(const std::byte* at, int row, int) {
    return {to_float(get_row<f16>(at, row)), 0.0f};
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* at, int, typename V::F32& scale,
                                                 typename V::F32&) {
    scale = V::load_f32(reinterpret_cast<const f16*>(at));
  }
};

/// An f16 scale and an f16 minimum.
struct HalfScaleMin {
  struct Row {
    f16 d, m;
  };
  static constexpr int64_t kBytes = 64;
  static constexpr bool kMin = true;
  static void put(std::byte* at, int row, Row fields) {
    put_row(at, row, fields.d);
    put_row(at + 32, row, fields.m);
  }
  static ScaleMin read(const std::byte* at, int row, int) {
    return {to_float(get_row<f16>(at, row)), to_float(get_row<f16>(at + 32, row))};
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* at, int, typename V::F32& scale,
                                                 typename V::F32& min) {
    scale = V::load_f32(reinterpret_cast<const f16*>(at));
    min = V::load_f32(reinterpret_cast<const f16*>(at + 32));
  }
};

/// An f16 scale and the code that means zero: min = −scale · zero, exact in float.
struct HalfScaleZero {
  struct Row {
    f16 d;
    uint8_t zero;
  };
  static constexpr int64_t kBytes = 48;
  static constexpr bool kMin = true;
  static void put(std::byte* at, int row, Row fields) {
    put_row(at, row, fields.d);
    put_row(at + 32, row, fields.zero);
  }
  static ScaleMin read(const std::byte* at, int row, int) {
    const float d = to_float(get_row<f16>(at, row));
    return {d, d * -static_cast<float>(get_row<uint8_t>(at + 32, row))};
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* at, int, typename V::F32& scale,
                                                 typename V::F32& min) {
    scale = V::load_f32(reinterpret_cast<const f16*>(at));
    const auto zero = to_f32(V::widen_u8(reinterpret_cast<const uint8_t*>(at + 32)));
    min = mul(scale, sub(V::fill(-0.0f), zero));
  }
};

/// 2^(e − 128) from an exponent byte: half of OCP microscaling's E8M0, since the table of E2M1
/// holds doubled values. 255, NaN in that standard, is 2^127, as ggml reads it.
struct ExponentScale {
  using Row = uint8_t;
  static constexpr int64_t kBytes = 16;
  static constexpr bool kMin = false;
  static void put(std::byte* at, int row, Row e) { put_row(at, row, e); }
  static ScaleMin read(const std::byte* at, int row, int) {
    return {__builtin_ldexpf(1.0f, get_row<uint8_t>(at, row) - 128), 0.0f};
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* at, int, typename V::F32& scale,
                                                 typename V::F32&) {
    const auto e = V::widen_u8(reinterpret_cast<const uint8_t*>(at));
    const auto subnormal = from_bits(add(shift_left(e, 21), V::fill_i32(1 << 21)));  // e < 2
    const auto normal = from_bits(shift_left(sub(e, V::fill_i32(1)), 23));
    scale = select(less(e, V::fill_i32(2)), subnormal, normal);
  }
};

/// Half of an unsigned E4M3 byte for each of kGroups groups (NVFP4). The top bit means nothing; 127
/// is stored as 0, which is how ggml reads it.
template <int kGroups>
struct TinyFloatScales {
  struct Row {
    uint8_t e[kGroups];
  };
  static constexpr int64_t kBytes = 16 * kGroups;
  static constexpr bool kMin = false;
  static float value(int code) {
    const auto mantissa = static_cast<float>(code & 7);
    return code < 8 ? mantissa * 0x1p-10f : __builtin_ldexpf(8.0f + mantissa, (code >> 3) - 11);
  }
  static void put(std::byte* at, int row, const Row& fields) {
    for (int g = 0; g < kGroups; ++g) {
      const int e = fields.e[g];
      put_row(at + 16 * g, row, static_cast<uint8_t>(e == 127 ? 0 : e & 127));
    }
  }
  static ScaleMin read(const std::byte* at, int row, int g) {
    return {value(get_row<uint8_t>(at + 16 * g, row)), 0.0f};
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* at, int g, typename V::F32& scale,
                                                 typename V::F32&) {
    const auto code = V::widen_u8(reinterpret_cast<const uint8_t*>(at + 16 * g));
    const auto subnormal = mul(to_f32(code), V::fill(0x1p-10f));
    const auto normal = from_bits(add(shift_left(code, 20), V::fill_i32(119 << 23)));
    scale = select(less(code, V::fill_i32(8)), subnormal, normal);
  }
};

/// An f16 scale for the block and a signed byte for each group, at most `largest` from zero: d · s.
template <int kGroups, int largest>
struct ByteScales {
  struct Row {
    f16 d;
    int8_t s[kGroups];
  };
  static constexpr int64_t kBytes = 32 + 16 * kGroups;
  static constexpr bool kMin = false;
  static void put(std::byte* at, int row, const Row& fields) {
    put_row(at, row, fields.d);
    for (int g = 0; g < kGroups; ++g) put_row(at + 32 + 16 * g, row, fields.s[g]);
  }
  static ScaleMin read(const std::byte* at, int row, int g) {
    const auto s = static_cast<float>(get_row<int8_t>(at + 32 + 16 * g, row));
    return {to_float(get_row<f16>(at, row)) * s, 0.0f};
  }
  static constexpr int kLargestStep = largest;
  template <class V>
  [[gnu::always_inline]] static inline void steps(const std::byte* at, int g, typename V::I32& s,
                                                  typename V::I32&) {
    s = V::widen_s8(reinterpret_cast<const int8_t*>(at + 32 + 16 * g));
  }
  template <class V>
  [[gnu::always_inline]] static inline typename V::Row step_bytes(const std::byte* at, int g) {
    return V::load_row(at + 32 + 16 * g);
  }
  template <class V>
  [[gnu::always_inline]] static inline void units(const std::byte* at, typename V::F32& d,
                                                  typename V::F32&) {
    d = V::load_f32(reinterpret_cast<const f16*>(at));
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* at, int g, typename V::F32& scale,
                                                 typename V::F32&) {
    typename V::I32 s, none;
    steps<V>(at, g, s, none);
    scale = mul(V::load_f32(reinterpret_cast<const f16*>(at)), to_f32(s));
  }
};

/// Scales in two levels, a block's f16 d and dmin and small integers s and m for each group: d · s
/// and −dmin · m.
template <class V>
[[gnu::always_inline]] static inline void load_units(const std::byte* at, typename V::F32& d,
                                                     typename V::F32& least) {
  d = V::load_f32(reinterpret_cast<const f16*>(at));
  least = sub(V::fill(-0.0f), V::load_f32(reinterpret_cast<const f16*>(at + 32)));
}
template <class V, class S>
[[gnu::always_inline]] static inline void load_steps(const std::byte* at, int g,
                                                     typename V::F32& scale, typename V::F32& min) {
  typename V::I32 s, m;
  S::template steps<V>(at, g, s, m);
  typename V::F32 d, least;
  load_units<V>(at, d, least);
  scale = mul(d, to_f32(s));
  min = mul(least, to_f32(m));
}

/// The scales of Q4_K and Q5_K: f16 d and dmin, for each of eight groups six bits s and m; scale
/// d · s, minimum −dmin · m. In memory: d, dmin; for each group a byte of the low halves (s, m);
/// for each pair of groups a byte of the high bits (s, m, s, m). As many bytes as in the file.
struct SixBitScales {
  struct Row {
    f16 d, dmin;
    uint8_t s[8], m[8];
  };
  static constexpr int64_t kBytes = 64 + 16 * 12;
  static constexpr bool kMin = true;
  static void put(std::byte* at, int row, const Row& fields) {
    put_row(at, row, fields.d);
    put_row(at + 32, row, fields.dmin);
    for (int g = 0; g < 8; ++g) {
      const int s = fields.s[g], m = fields.m[g];
      put_row(at + 64 + 16 * g, row, static_cast<uint8_t>((s & 15) | (m & 15) << 4));
      std::byte& high = at[192 + 16 * (g / 2) + row];
      const int bits = s >> 4 | (m >> 4) << 2, shift = g % 2 * 4;
      high = (high & static_cast<std::byte>(0xf0 >> shift)) | static_cast<std::byte>(bits << shift);
    }
  }
  static ScaleMin read(const std::byte* at, int row, int g) {
    const int low = get_row<uint8_t>(at + 64 + 16 * g, row);
    const int high = get_row<uint8_t>(at + 192 + 16 * (g / 2), row) >> (g % 2 * 4);
    const auto s = static_cast<float>((low & 15) | (high & 3) << 4);
    const auto m = static_cast<float>(low >> 4 | (high & 12) << 2);
    return {to_float(get_row<f16>(at, row)) * s, -(to_float(get_row<f16>(at + 32, row)) * m)};
  }
  static constexpr int kLargestStep = 63;
  template <class V>
  [[gnu::always_inline]] static inline void steps(const std::byte* at, int g, typename V::I32& s,
                                                  typename V::I32& m) {
    const auto low = V::widen_u8(reinterpret_cast<const uint8_t*>(at + 64 + 16 * g));
    auto high = V::widen_u8(reinterpret_cast<const uint8_t*>(at + 192 + 16 * (g / 2)));
    if (g % 2 != 0) high = shift_right(high, 4);
    s = add(and_bits(low, V::fill_i32(15)), shift_left(and_bits(high, V::fill_i32(3)), 4));
    m = add(shift_right(low, 4), shift_left(and_bits(high, V::fill_i32(12)), 2));
  }
  template <class V>
  [[gnu::always_inline]] static inline typename V::Row step_bytes(const std::byte* at, int g) {
    return or_bytes(bit_field(V::load_row(at + 64 + 16 * g), 0, 15),
                    bit_field(V::load_row(at + 192 + 16 * (g / 2)), g % 2 * 4 - 4, 0x30));
  }
  template <class V>
  [[gnu::always_inline]] static inline typename V::Row min_bytes(const std::byte* at, int g) {
    return or_bytes(bit_field(V::load_row(at + 64 + 16 * g), 4, 15),
                    bit_field(V::load_row(at + 192 + 16 * (g / 2)), g % 2 * 4 - 2, 0x30));
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* at, int g, typename V::F32& scale,
                                                 typename V::F32& min) {
    load_steps<V, SixBitScales>(at, g, scale, min);
  }
  template <class V>
  [[gnu::always_inline]] static inline void units(const std::byte* at, typename V::F32& d,
                                                  typename V::F32& least) {
    load_units<V>(at, d, least);
  }
};

/// The scales of Q2_K: f16 d and dmin, for each of sixteen groups a byte with s in its low half and
/// m in its high one; scale d · s, minimum −dmin · m.
struct FourBitScales {
  struct Row {
    f16 d, dmin;
    uint8_t sm[16];
  };
  static constexpr int64_t kBytes = 64 + 16 * 16;
  static constexpr bool kMin = true;
  static void put(std::byte* at, int row, const Row& fields) {
    put_row(at, row, fields.d);
    put_row(at + 32, row, fields.dmin);
    for (int g = 0; g < 16; ++g) put_row(at + 64 + 16 * g, row, fields.sm[g]);
  }
  static ScaleMin read(const std::byte* at, int row, int g) {
    const int sm = get_row<uint8_t>(at + 64 + 16 * g, row);
    const auto s = static_cast<float>(sm & 15), m = static_cast<float>(sm >> 4);
    return {to_float(get_row<f16>(at, row)) * s, -(to_float(get_row<f16>(at + 32, row)) * m)};
  }
  static constexpr int kLargestStep = 15;
  template <class V>
  [[gnu::always_inline]] static inline void steps(const std::byte* at, int g, typename V::I32& s,
                                                  typename V::I32& m) {
    const auto sm = V::widen_u8(reinterpret_cast<const uint8_t*>(at + 64 + 16 * g));
    s = and_bits(sm, V::fill_i32(15));
    m = shift_right(sm, 4);
  }
  template <class V>
  [[gnu::always_inline]] static inline typename V::Row step_bytes(const std::byte* at, int g) {
    return bit_field(V::load_row(at + 64 + 16 * g), 0, 15);
  }
  template <class V>
  [[gnu::always_inline]] static inline typename V::Row min_bytes(const std::byte* at, int g) {
    return bit_field(V::load_row(at + 64 + 16 * g), 4, 15);
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* at, int g, typename V::F32& scale,
                                                 typename V::F32& min) {
    load_steps<V, FourBitScales>(at, g, scale, min);
  }
  template <class V>
  [[gnu::always_inline]] static inline void units(const std::byte* at, typename V::F32& d,
                                                  typename V::F32& least) {
    load_units<V>(at, d, least);
  }
};

}  // namespace moe
