#pragma once
// The vocabulary in the compiler's generic vectors: any processor, no intrinsics.

namespace moe::MOE_ISA {

inline constexpr int kLanes = 16;
// The register tile of a matrix product: kTileRows rows of activations × kTilePanels weight panels.
inline constexpr int kTileRows = 2;
inline constexpr int kFloatTileRows = 2;
inline constexpr int kIntegerTileRows = 2;
inline constexpr int kTilePanels = 1;
inline constexpr int kPanelTileRows = 0;     // no tile has more panels than one
inline constexpr bool kScalesBytes = false;  // a vector of bytes times one of factors

using FloatLanes = float __attribute__((vector_size(64)));
using IntLanes = int32_t __attribute__((vector_size(64)));
using UintLanes = uint32_t __attribute__((vector_size(64)));

struct F32x16 {
  FloatLanes v;
};
struct I32x16 {
  IntLanes v;
};
struct U8x64 {
  UintLanes v;
};
struct Mask16 {
  IntLanes v;  // -1 or 0
};

MOE_INLINE F32x16 zero_f32() { return {FloatLanes{}}; }
MOE_INLINE F32x16 set1(float x) { return {FloatLanes{} + x}; }
MOE_INLINE I32x16 set1_i32(int32_t x) { return {IntLanes{} + x}; }

MOE_INLINE F32x16 load(const float* p) {
  F32x16 r;
  std::memcpy(&r.v, p, 64);
  return r;
}
MOE_INLINE I32x16 load_i32(const int32_t* p) {
  I32x16 r;
  std::memcpy(&r.v, p, 64);
  return r;
}
/// Sixteen bytes, widened.
MOE_INLINE I32x16 load_i32(const uint8_t* p) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = p[i];
  return r;
}
MOE_INLINE I32x16 load_i32(const int8_t* p) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = p[i];
  return r;
}
MOE_INLINE U8x64 load_u8(const void* p) {
  U8x64 r;
  std::memcpy(&r.v, p, 64);
  return r;
}
MOE_INLINE void store(float* p, F32x16 a) { std::memcpy(p, &a.v, 64); }
/// Past the caches; p is aligned to 64 bytes. fence_streams() before another thread reads it.
MOE_INLINE void stream(float* p, F32x16 a) { store(p, a); }
MOE_INLINE void fence_streams() {}
MOE_INLINE void store_i32(int32_t* p, I32x16 a) { std::memcpy(p, &a.v, 64); }
MOE_INLINE void store_u8(void* p, U8x64 a) { std::memcpy(p, &a.v, 64); }
/// Sixteen bytes; every lane must fit.
MOE_INLINE void store_i8(int8_t* p, I32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}

MOE_INLINE F32x16 load_first(const float* p, int n) {
  F32x16 r = zero_f32();
  std::memcpy(&r.v, p, static_cast<size_t>(n) * 4);
  return r;
}
MOE_INLINE void store_first(float* p, F32x16 a, int n) {
  std::memcpy(p, &a.v, static_cast<size_t>(n) * 4);
}

MOE_INLINE F32x16 load(const bf16* p) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = to_float(p[i]);
  return r;
}
MOE_INLINE F32x16 load(const f16* p) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = to_float(p[i]);
  return r;
}
MOE_INLINE F32x16 load(const int8_t* p) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(p[i]);
  return r;
}
MOE_INLINE void store(bf16* p, F32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = to_bf16(a.v[i]);
}
MOE_INLINE void store(f16* p, F32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = to_f16(a.v[i]);
}

MOE_INLINE F32x16 add(F32x16 a, F32x16 b) { return {a.v + b.v}; }
MOE_INLINE F32x16 sub(F32x16 a, F32x16 b) { return {a.v - b.v}; }
MOE_INLINE F32x16 mul(F32x16 a, F32x16 b) { return {a.v * b.v}; }
MOE_INLINE F32x16 div(F32x16 a, F32x16 b) { return {a.v / b.v}; }
/// a·b + c; rounded once where the processor can, twice here.
MOE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {a.v * b.v + c.v}; }
/// As the x86 instructions: the second operand where either is NaN.
MOE_INLINE F32x16 max(F32x16 a, F32x16 b) { return {a.v > b.v ? a.v : b.v}; }
MOE_INLINE F32x16 min(F32x16 a, F32x16 b) { return {a.v < b.v ? a.v : b.v}; }
MOE_INLINE F32x16 sqrt(F32x16 a) {
  for (int i = 0; i < 16; ++i) a.v[i] = __builtin_sqrtf(a.v[i]);
  return a;
}

MOE_INLINE I32x16 bits(F32x16 a) { return {reinterpret_cast<IntLanes>(a.v)}; }
MOE_INLINE F32x16 from_bits(I32x16 a) { return {reinterpret_cast<FloatLanes>(a.v)}; }
MOE_INLINE F32x16 abs(F32x16 a) { return from_bits({bits(a).v & 0x7fffffff}); }
MOE_INLINE I32x16 add(I32x16 a, I32x16 b) { return {a.v + b.v}; }
MOE_INLINE I32x16 mul(I32x16 a, I32x16 b) { return {a.v * b.v}; }
MOE_INLINE I32x16 sub(I32x16 a, I32x16 b) { return {a.v - b.v}; }
MOE_INLINE I32x16 shift_left(I32x16 a, int count) { return {a.v << count}; }
MOE_INLINE I32x16 and_bits(I32x16 a, I32x16 b) { return {a.v & b.v}; }

MOE_INLINE I32x16 xor_bits(I32x16 a, I32x16 b) { return {a.v ^ b.v}; }
/// Copies the sign bit in.
MOE_INLINE I32x16 shift_right(I32x16 a, int count) { return {a.v >> count}; }
MOE_INLINE I32x16 max(I32x16 a, I32x16 b) { return {a.v > b.v ? a.v : b.v}; }
MOE_INLINE I32x16 min(I32x16 a, I32x16 b) { return {a.v < b.v ? a.v : b.v}; }

/// Nearest integer, ties to even; |a| < 2^31.
MOE_INLINE I32x16 round_to_i32(F32x16 a) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) {
    const bool fits = a.v[i] >= -0x1p31f && a.v[i] < 0x1p31f;
    r.v[i] = fits ? static_cast<int32_t>(__builtin_rintf(a.v[i])) : INT32_MIN;
  }
  return r;
}
MOE_INLINE F32x16 to_f32(I32x16 a) { return {__builtin_convertvector(a.v, FloatLanes)}; }

MOE_INLINE Mask16 less(F32x16 a, F32x16 b) { return {a.v < b.v}; }
MOE_INLINE Mask16 equal(F32x16 a, F32x16 b) { return {a.v == b.v}; }
MOE_INLINE Mask16 is_nan(F32x16 a) { return {a.v != a.v}; }
MOE_INLINE F32x16 select(Mask16 m, F32x16 if_true, F32x16 if_false) {
  return {m.v ? if_true.v : if_false.v};
}
MOE_INLINE Mask16 less(I32x16 a, I32x16 b) { return {a.v < b.v}; }
MOE_INLINE Mask16 equal(I32x16 a, I32x16 b) { return {a.v == b.v}; }
MOE_INLINE I32x16 select(Mask16 m, I32x16 if_true, I32x16 if_false) {
  return {m.v ? if_true.v : if_false.v};
}
/// Lanes whose byte is not zero; reads sixteen bytes.
MOE_INLINE Mask16 nonzero_bytes(const uint8_t* p) {
  Mask16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = p[i] != 0 ? -1 : 0;
  return r;
}
/// Lanes below n.
MOE_INLINE Mask16 first_mask(int n) {
  Mask16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = i < n ? -1 : 0;
  return r;
}
/// Writes the lanes whose bit is set, in order, from p on; up to 16 integers may be overwritten.
MOE_INLINE void store_compressed(int32_t* p, I32x16 a, uint32_t lanes) {
  for (int i = 0; i < 16; ++i) {
    *p = a.v[i];
    p += (lanes >> i) & 1u;
  }
}
/// Lane i gets lane i ^ distance (1, 2, 4 or 8).
template <int distance>
MOE_INLINE F32x16 swap_lanes(F32x16 a) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[i ^ distance];
  return r;
}
/// b's lanes where the pattern's bit is set, a's elsewhere.
template <uint32_t pattern>
MOE_INLINE I32x16 blend_lanes(I32x16 a, I32x16 b) {
  for (int i = 0; i < 16; ++i) a.v[i] = ((pattern >> i) & 1u) != 0 ? b.v[i] : a.v[i];
  return a;
}
/// Deals the lanes of two vectors out to two: the one gets those whose index has the distance's bit
/// clear, the other those that have it set, a's before b's (within whole vectors for 8 and 4,
/// within blocks of four lanes for 2 and 1).
struct LanePair {
  F32x16 clear, set;
};
template <int distance>
MOE_INLINE LanePair pair_lanes(F32x16 a, F32x16 b) {
  LanePair r;
  constexpr int block = distance >= 4 ? 16 : 4;
  for (int start = 0; start < 16; start += block) {
    int at = start;
    for (int i = start; i < start + block; ++i) {
      if ((i & distance) != 0) continue;
      r.clear.v[at] = a.v[i];
      r.clear.v[at + block / 2] = b.v[i];
      r.set.v[at] = a.v[i + distance];
      r.set.v[at++ + block / 2] = b.v[i + distance];
    }
  }
  return r;
}
/// Lanes whose bit is set.
MOE_INLINE Mask16 lane_mask(uint32_t lanes) {
  Mask16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = ((lanes >> i) & 1u) != 0 ? -1 : 0;
  return r;
}
/// Bit i is lane i.
MOE_INLINE uint32_t to_bitmask(Mask16 m) {
  uint32_t r = 0;
  for (int i = 0; i < 16; ++i) r |= (m.v[i] ? 1u : 0u) << i;
  return r;
}

/// The lanes' sum in one fixed tree: ((i, i+8), (i, i+4), (i, i+2), (i, i+1)).
MOE_INLINE float reduce_add(F32x16 a) {
  float s[16];
  std::memcpy(s, &a.v, 64);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) s[i] = s[i] + s[i + half];
  }
  return s[0];
}
MOE_INLINE float reduce_max(F32x16 a) {
  float r = a.v[0];
  for (int i = 1; i < 16; ++i) r = a.v[i] > r ? a.v[i] : r;
  return r;
}

MOE_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
MOE_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

// ---- one step of a dot product: a word of activations against sixteen rows of weights ----

struct Words {
  uint32_t v;
};
MOE_INLINE Words broadcast_word(const uint32_t* p) { return {*p}; }

/// acc[i] + x · w[i]
MOE_INLINE F32x16 dot_f32(F32x16 acc, Words x, F32x16 w) {
  float value;
  std::memcpy(&value, &x.v, 4);
  return {acc.v + w.v * value};
}

/// acc[i] + x0·w[2i] + x1·w[2i+1] with bfloat16 pairs, products and sums in float.
MOE_INLINE F32x16 dot_bf16(F32x16 acc, Words x, U8x64 w) {
  float x0, x1;
  const uint32_t low = x.v << 16, high = x.v & 0xffff0000u;
  std::memcpy(&x0, &low, 4);
  std::memcpy(&x1, &high, 4);
  const FloatLanes w0 = reinterpret_cast<FloatLanes>(w.v << 16);
  const FloatLanes w1 = reinterpret_cast<FloatLanes>(w.v & 0xffff0000u);
  return {acc.v + (w1 * x1 + w0 * x0)};
}

/// acc[i] + sum over j < 4 of x_j · w[4i+j]: w unsigned, x signed bytes; exact.
MOE_INLINE I32x16 dot_u8s8(I32x16 acc, Words x, U8x64 w) {
  for (int j = 0; j < 4; ++j) {
    const auto xj = static_cast<int32_t>(static_cast<int8_t>(x.v >> (8 * j)));
    acc.v += reinterpret_cast<IntLanes>((w.v >> (8 * j)) & 0xffu) * xj;
  }
  return acc;
}

/// acc[i] + x_0 · w[2i] + x_1 · w[2i+1]: signed 16-bit integers on both sides; exact.
MOE_INLINE I32x16 dot_i16(I32x16 acc, Words x, I32x16 w) {
  const auto low = [](IntLanes a) { return (a << 16) >> 16; };
  const IntLanes first = low(w.v) * static_cast<int16_t>(x.v);
  return {acc.v + first + (w.v >> 16) * static_cast<int16_t>(x.v >> 16)};
}

/// (a >> shift) & mask in every byte, shifting left by −shift where it is negative. The mask has no
/// bit that comes from another byte; |shift| < 8.
MOE_INLINE U8x64 bit_field(U8x64 a, int shift, uint8_t mask) {
  return {(shift >= 0 ? a.v >> shift : a.v << -shift) & (0x01010101u * mask)};
}
MOE_INLINE U8x64 or_bytes(U8x64 a, U8x64 b) { return {a.v | b.v}; }
/// bfloat16 of the E4M3 numbers in the first and in the last eight of each sixteen bytes; exact.
MOE_INLINE void e4m3_pairs(U8x64 a, U8x64& first, U8x64& second) {
  constexpr uint16_t kSubnormal[8] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};
  uint8_t codes[64];
  std::memcpy(codes, &a.v, 64);
  uint16_t lanes[2][32];
  for (int i = 0; i < 64; ++i) {
    const unsigned size = codes[i] & 127u;
    const unsigned normal = size == 127 ? 0x7fc0u : (size << 4) + 0x3c00u;
    lanes[i / 8 % 2][i / 16 * 8 + i % 8] =
        static_cast<uint16_t>((codes[i] & 128u) << 8 | (size < 8 ? kSubnormal[size] : normal));
  }
  std::memcpy(&first.v, lanes[0], 64);
  std::memcpy(&second.v, lanes[1], 64);
}
/// table[a] for bytes a < 16; the table has sixteen bytes.
MOE_INLINE U8x64 lookup16(U8x64 a, const uint8_t* table) {
  uint8_t bytes[64];
  std::memcpy(bytes, &a.v, 64);
  for (int i = 0; i < 64; ++i) bytes[i] = table[bytes[i] & 15];
  std::memcpy(&a.v, bytes, 64);
  return a;
}
/// table[a & 7]; the table has sixteen bytes all the same.
MOE_INLINE U8x64 lookup8(U8x64 a, const uint8_t* table) {
  return lookup16(bit_field(a, 0, 7), table);
}
MOE_INLINE U8x64 as_bytes(I32x16 a) { return {reinterpret_cast<UintLanes>(a.v)}; }
MOE_INLINE U8x64 xor_bytes(U8x64 a, uint8_t b) { return {a.v ^ (0x01010101u * b)}; }
/// Byte j of each lane's word, zero-extended to float.
template <int j>
MOE_INLINE F32x16 byte_to_f32(U8x64 a) {
  return {
      __builtin_convertvector(reinterpret_cast<IntLanes>((a.v >> (8 * j)) & 0xffu), FloatLanes)};
}
/// bfloat16 j (0 or 1) of each lane's pair.
template <int j>
MOE_INLINE F32x16 pair_to_f32(U8x64 a) {
  return {reinterpret_cast<FloatLanes>(j == 0 ? a.v << 16 : a.v & 0xffff0000u)};
}

}  // namespace moe::MOE_ISA
