#pragma once
// Integers in groups: kDepth columns of a row share a scale. 8-bit (q8_0) and 4-bit (q4_0, int4,
// mxfp4); the block is the group, values first, then the sixteen rows' scales.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "moe/quant/format.h"

namespace moe {

/// The value of x that is largest without its sign.
static inline float signed_largest(const float* x, int n) {
  float largest = 0.0f;
  for (int i = 0; i < n; ++i) {
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  }
  return largest;
}

/// What such blocks have in common: kBits per value, sixteen scales of type Scale behind them. Self
/// adds kOffset, weights<V>, and put(x, block, row), which quantises one row of a zeroed block.
template <class Self, int kGroup, int kBits, class Scale>
struct GroupBlock {
  static constexpr int kDepth = kGroup;
  static constexpr int kUnitDepth = 32 / kBits;  // columns of a row in 32 bits
  static constexpr int64_t kScalesAt = int64_t{kGroup} * kPanelRows * kBits / 8;
  static constexpr int64_t kBlockBytes = kScalesAt + kPanelRows * int64_t{sizeof(Scale)};
  static constexpr int64_t kTrailerBytes = 0;
  static constexpr Dot kDot = Dot::kU8S8;
  static constexpr Scales kScales = Scales::kBlock;

  static Scale* scales(std::byte* block) { return reinterpret_cast<Scale*>(block + kScalesAt); }
  static const Scale* scales(const std::byte* block) {
    return reinterpret_cast<const Scale*>(block + kScalesAt);
  }

  template <class V>
  [[gnu::always_inline]] static inline typename V::F32 scale(const std::byte* block) {
    return V::load_f32(scales(block));
  }
  template <class V>
  [[gnu::always_inline]] static inline void decode(const std::byte* block, const std::byte*,
                                                   int unit, typename V::F32* out) {
    typename V::U8 words[kUnitDepth / 4];
    Self::template weights<V>(block, unit, words);
    const auto factor = Self::template scale<V>(block);
    const auto offset = V::fill(Self::kOffset);
    for (int i = 0; i < kUnitDepth / 4; ++i) {
      out[4 * i + 0] = mul(sub(V::template byte<0>(words[i]), offset), factor);
      out[4 * i + 1] = mul(sub(V::template byte<1>(words[i]), offset), factor);
      out[4 * i + 2] = mul(sub(V::template byte<2>(words[i]), offset), factor);
      out[4 * i + 3] = mul(sub(V::template byte<3>(words[i]), offset), factor);
    }
  }

  template <class Put>
  static void each_row(int64_t blocks, std::byte* panel, Put put) {
    for (int64_t b = 0; b < blocks; ++b, panel += kBlockBytes) {
      std::memset(panel, 0, static_cast<size_t>(kBlockBytes));
      for (int r = 0; r < kPanelRows; ++r) put(b, r, panel);
    }
  }
  static void encode(const float* rows, int64_t depth, std::byte* panel) {
    each_row(depth / kGroup, panel, [&](int64_t b, int r, std::byte* block) {
      Self::put(rows + r * depth + b * kGroup, block, r);
    });
  }
};

/// [k / 4][row][k % 4] bytes q + 128, f16 scales: GGUF's Q8_0. In a file: f16 d, 32 signed bytes.
struct Q8_0Format : GroupBlock<Q8_0Format, 32, 8, f16> {
  static constexpr int kOffset = 128;
  static constexpr int64_t kFileBytes = 34;

  template <class V>
  [[gnu::always_inline]] static inline void weights(const std::byte* block, int unit,
                                                    typename V::U8* out) {
    out[0] = V::load_bytes(block + unit * 64);
  }
  static int64_t index(int row, int64_t k) { return (k / 4 * kPanelRows + row) * 4 + k % 4; }
  /// ggml's rounding: d = max|x| / 127, kept as f16; q from the d in float.
  static void put(const float* x, std::byte* block, int row) {
    const float d = std::fabs(signed_largest(x, kDepth)) / 127.0f;
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    scales(block)[row] = to_f16(d);
    for (int k = 0; k < kDepth; ++k) {
      const float rounded = std::clamp(std::round(x[k] * inverse), -127.0f, 127.0f);
      block[index(row, k)] = static_cast<std::byte>(static_cast<int>(rounded) + kOffset);
    }
  }
  static void repack(const std::byte* const* rows, int64_t blocks, std::byte* panel) {
    each_row(blocks, panel, [&](int64_t b, int r, std::byte* block) {
      const std::byte* file = rows[r] + b * kFileBytes;
      std::memcpy(&scales(block)[r], file, 2);
      for (int k = 0; k < kDepth; ++k) block[index(r, k)] = file[2 + k] ^ std::byte{0x80};
    });
  }
  static float round(std::byte* panel, int64_t, int row, int64_t k, float x) {
    std::byte* block = panel + k / kDepth * kBlockBytes;
    const float d = to_float(scales(block)[row]);
    const float q = d != 0.0f ? std::clamp(std::nearbyint(x / d), -127.0f, 127.0f) : 0.0f;
    block[index(row, k % kDepth)] = static_cast<std::byte>(static_cast<int>(q) + kOffset);
    return q * d;
  }
  static float at(const std::byte* panel, int64_t, int row, int64_t k) {
    const std::byte* block = panel + k / kDepth * kBlockBytes;
    const int q = static_cast<int>(block[index(row, k % kDepth)]) - kOffset;
    return static_cast<float>(q) * to_float(scales(block)[row]);
  }
};

/// Where a 4-bit value lies: bytes [k / 8][row][k % 4], columns 8u … 8u + 3 in the low halves and
/// 8u + 4 … 8u + 7 in the high ones, so that one load and two masks give two words' operands.
struct Nibbles {
  static int64_t index(int row, int64_t k) { return (k / 8 * kPanelRows + row) * 4 + k % 4; }
  static int shift(int64_t k) { return k % 8 < 4 ? 0 : 4; }
  static int get(const std::byte* block, int row, int64_t k) {
    return (static_cast<int>(block[index(row, k)]) >> shift(k)) & 15;
  }
  /// The block's values have to be zero before.
  static void set(std::byte* block, int row, int64_t k, int value) {
    block[index(row, k)] |= static_cast<std::byte>(value << shift(k));
  }
  static void replace(std::byte* block, int row, int64_t k, int value) {
    block[index(row, k)] &= static_cast<std::byte>(0xf0 >> shift(k));
    set(block, row, k, value);
  }
  /// From sixteen bytes of a GGUF block of 32: column j in byte j's low half, j + 16 in its high
  /// one.
  static void from_file(const std::byte* file, int row, std::byte* block) {
    for (int j = 0; j < 16; ++j) {
      set(block, row, j, static_cast<int>(file[j]) & 15);
      set(block, row, j + 16, static_cast<int>(file[j]) >> 4);
    }
  }
  template <class V>
  [[gnu::always_inline]] static inline void load(const std::byte* block, int unit,
                                                 typename V::U8* out) {
    const auto bytes = V::load_bytes(block + unit * 64);
    out[0] = low_nibbles(bytes);
    out[1] = high_nibbles(bytes);
  }
};

/// q − 8 with q in [0, 15], f16 scales, rounded to nearest with the scale of least squared error.
template <int kGroup>
struct Int4Format : GroupBlock<Int4Format<kGroup>, kGroup, 4, f16> {
  using Block = GroupBlock<Int4Format<kGroup>, kGroup, 4, f16>;
  static constexpr int kOffset = 8;

  template <class V>
  [[gnu::always_inline]] static inline void weights(const std::byte* block, int unit,
                                                    typename V::U8* out) {
    Nibbles::load<V>(block, unit, out);
  }
  static int quantise(float x) {
    return static_cast<int>(std::clamp(std::nearbyint(x), -8.0f, 7.0f)) + kOffset;
  }
  static void put(const float* x, std::byte* block, int row) {
    Block::scales(block)[row] = best_scale(x);
    const float d = to_float(Block::scales(block)[row]);
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    for (int k = 0; k < kGroup; ++k) Nibbles::set(block, row, k, quantise(x[k] * inverse));
  }
  /// The best of nine scales from max|x| / 8 to max|x| / 6, as stored. The sign puts the largest
  /// value on −8, which has no positive twin.
  static f16 best_scale(const float* x) {
    const float largest = signed_largest(x, kGroup);
    f16 best = to_f16(largest / -8.0f);
    double least = -1.0;
    for (int i = 0; i <= 8; ++i) {
      const f16 candidate = to_f16(largest / (-8.0f + 0.25f * static_cast<float>(i)));
      const float d = to_float(candidate);
      if (d == 0.0f) continue;
      double error = 0.0;
      for (int k = 0; k < kGroup; ++k) {
        const double e = x[k] - d * static_cast<float>(quantise(x[k] / d) - kOffset);
        error += e * e;
      }
      if (least < 0.0 || error < least) {
        least = error;
        best = candidate;
      }
    }
    return best;
  }
  static float round(std::byte* panel, int64_t, int row, int64_t k, float x) {
    std::byte* block = panel + k / kGroup * Block::kBlockBytes;
    const float d = to_float(Block::scales(block)[row]);
    const int code = quantise(d != 0.0f ? x / d : 0.0f);
    Nibbles::replace(block, row, k % kGroup, code);
    return static_cast<float>(code - kOffset) * d;
  }
  static float at(const std::byte* panel, int64_t, int row, int64_t k) {
    const std::byte* block = panel + k / kGroup * Block::kBlockBytes;
    const int q = Nibbles::get(block, row, k % kGroup) - kOffset;
    return static_cast<float>(q) * to_float(Block::scales(block)[row]);
  }
};

/// GGUF's Q4_0: int4 in groups of 32 with ggml's rounding, d = largest / −8, q = trunc(x / d
/// + 8.5). In a file: f16 d, 16 bytes.
struct Q4_0Format : Int4Format<32> {
  static constexpr int64_t kFileBytes = 18;

  static void encode(const float* rows, int64_t depth, std::byte* panel) {
    each_row(depth / kDepth, panel, [&](int64_t b, int r, std::byte* block) {
      const float* x = rows + r * depth + b * kDepth;
      const float d = signed_largest(x, kDepth) / -8.0f;
      const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
      scales(block)[r] = to_f16(d);
      for (int k = 0; k < kDepth; ++k) {
        Nibbles::set(block, r, k, std::clamp(static_cast<int>(x[k] * inverse + 8.5f), 0, 15));
      }
    });
  }
  static void repack(const std::byte* const* rows, int64_t blocks, std::byte* panel) {
    each_row(blocks, panel, [&](int64_t b, int r, std::byte* block) {
      const std::byte* file = rows[r] + b * kFileBytes;
      std::memcpy(&scales(block)[r], file, 2);
      Nibbles::from_file(file + 2, r, block);
    });
  }
};

// At namespace scope: a member would be one symbol that every instruction set's object shares.
static constexpr uint8_t kMxfp4Values[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                             12, 11, 10, 9,  8,  6,  4,  0};

/// OCP MXFP4: four-bit floats E2M1 in groups of 32 with a power of two. Twice the values are
/// integers 0 … 12 with a sign, so a table of q + 12 serves the integer dot product. In a GGUF
/// file: the exponent byte, then 16 bytes.
struct Mxfp4Format : GroupBlock<Mxfp4Format, 32, 4, uint8_t> {
  static constexpr int kOffset = 12;
  static constexpr int64_t kFileBytes = 17;

  template <class V>
  [[gnu::always_inline]] static inline typename V::F32 scale(const std::byte* block) {
    return mul(V::power_of_two(scales(block)), V::fill(0.5f));
  }
  template <class V>
  [[gnu::always_inline]] static inline void weights(const std::byte* block, int unit,
                                                    typename V::U8* out) {
    Nibbles::load<V>(block, unit, out);
    out[0] = lookup16(out[0], kMxfp4Values);
    out[1] = lookup16(out[1], kMxfp4Values);
  }
  static int value(int code) { return kMxfp4Values[code] - kOffset; }
  /// The shared exponent is floor(log2 max|x|) − 2 (OCP MX 1.0, section 6.3); values round to
  /// nearest.
  static void put(const float* x, std::byte* block, int row) {
    const float largest = std::fabs(signed_largest(x, kDepth));
    const int exponent = largest > 0.0f ? std::clamp(std::ilogb(largest) + 125, 0, 254) : 127;
    scales(block)[row] = static_cast<uint8_t>(exponent);
    const float half = std::ldexp(0.5f, exponent - 127);
    for (int k = 0; k < kDepth; ++k) Nibbles::set(block, row, k, nearest(x[k] / half));
  }
  static int nearest(float doubled) {
    int best = 0;
    for (int code = 1; code < 16; ++code) {
      const float distance = std::fabs(static_cast<float>(value(code)) - doubled);
      const float least = std::fabs(static_cast<float>(value(best)) - doubled);
      // Ties go to the even code, as in every rounding of floats.
      if (distance < least || (distance == least && code % 2 == 0 && best % 2 != 0)) best = code;
    }
    return best;
  }
  static void repack(const std::byte* const* rows, int64_t blocks, std::byte* panel) {
    each_row(blocks, panel, [&](int64_t b, int r, std::byte* block) {
      const std::byte* file = rows[r] + b * kFileBytes;
      scales(block)[r] = static_cast<uint8_t>(file[0]);
      Nibbles::from_file(file + 1, r, block);
    });
  }
  static float round(std::byte* panel, int64_t, int row, int64_t k, float x) {
    std::byte* block = panel + k / kDepth * kBlockBytes;
    const float half = std::ldexp(0.5f, static_cast<int>(scales(block)[row]) - 127);
    const int code = nearest(x / half);
    Nibbles::replace(block, row, k % kDepth, code);
    return static_cast<float>(value(code)) * half;
  }
  static float at(const std::byte* panel, int64_t, int row, int64_t k) {
    const std::byte* block = panel + k / kDepth * kBlockBytes;
    const int exponent = scales(block)[row];
    const auto q = static_cast<float>(value(Nibbles::get(block, row, k % kDepth)));
    return exponent == 255 ? NAN : q * std::ldexp(0.5f, exponent - 127);
  }
};

}  // namespace moe
