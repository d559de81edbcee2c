#pragma once
// AVX-512 (F, BW, DQ, VL), with VNNI and BF16 dot products where the object has them.

#include <immintrin.h>

namespace moe::MOE_ISA {

inline constexpr int kLanes = 16;
inline constexpr int kTileRows = 12;        // 12 × 2 accumulators, 2 weights: 26 of 32 registers
inline constexpr int kFloatTileRows = 14;   // … with 2 weights and a row's float: 31
inline constexpr int kIntegerTileRows = 8;  // … whose pointers and those of the weights: 10 of 16
inline constexpr int kTilePanels = 2;
// Integers of one panel, as many floats and eight decoded words; without VNNI they cost too much
// for what is gained.
#ifdef __AVX512VNNI__
inline constexpr int kPanelTileRows = 10;
#else
inline constexpr int kPanelTileRows = 0;
#endif

struct F32x16 {
  __m512 v;
};
struct I32x16 {
  __m512i v;
};
struct U8x64 {
  __m512i v;
};
struct Mask16 {
  __mmask16 v;
};

MOE_INLINE F32x16 zero_f32() { return {_mm512_setzero_ps()}; }
MOE_INLINE F32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
MOE_INLINE I32x16 set1_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }

MOE_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
MOE_INLINE I32x16 load_i32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
MOE_INLINE I32x16 load_i32(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
MOE_INLINE I32x16 load_i32(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
MOE_INLINE U8x64 load_u8(const void* p) { return {_mm512_loadu_si512(p)}; }
MOE_INLINE void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
MOE_INLINE void stream(float* p, F32x16 a) { _mm512_stream_ps(p, a.v); }
MOE_INLINE void fence_streams() { _mm_sfence(); }
MOE_INLINE void store_i32(int32_t* p, I32x16 a) { _mm512_storeu_si512(p, a.v); }
MOE_INLINE void store_u8(void* p, U8x64 a) { _mm512_storeu_si512(p, a.v); }
MOE_INLINE void store_i8(int8_t* p, I32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}

MOE_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
MOE_INLINE F32x16 load_first(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(first_lanes(n), p)};
}
MOE_INLINE void store_first(float* p, F32x16 a, int n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), a.v);
}

MOE_INLINE F32x16 load(const bf16* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
MOE_INLINE F32x16 load(const f16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
MOE_INLINE F32x16 load(const int8_t* p) {
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b))};
}
// Not vcvtneps2bf16: that one flushes subnormals, and every instruction set rounds alike here.
MOE_INLINE void store(bf16* p, F32x16 a) {
  const __m512i u = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i safe = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(safe, 16)));
}
MOE_INLINE void store(f16* p, F32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

MOE_INLINE F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
MOE_INLINE F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
MOE_INLINE F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
MOE_INLINE F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
MOE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
MOE_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
MOE_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
MOE_INLINE F32x16 sqrt(F32x16 a) { return {_mm512_sqrt_ps(a.v)}; }

MOE_INLINE I32x16 bits(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
MOE_INLINE F32x16 from_bits(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
MOE_INLINE I32x16 and_bits(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
MOE_INLINE F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
MOE_INLINE I32x16 add(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
MOE_INLINE I32x16 mul(I32x16 a, I32x16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
MOE_INLINE I32x16 sub(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
MOE_INLINE I32x16 shift_left(I32x16 a, int count) {
  return {_mm512_slli_epi32(a.v, static_cast<unsigned>(count))};
}
MOE_INLINE I32x16 xor_bits(I32x16 a, I32x16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
MOE_INLINE I32x16 shift_right(I32x16 a, int count) {
  return {_mm512_srai_epi32(a.v, static_cast<unsigned>(count))};
}
MOE_INLINE I32x16 max(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
MOE_INLINE I32x16 min(I32x16 a, I32x16 b) { return {_mm512_min_epi32(a.v, b.v)}; }
MOE_INLINE I32x16 round_to_i32(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
MOE_INLINE F32x16 to_f32(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }

MOE_INLINE Mask16 less(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
MOE_INLINE Mask16 equal(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
MOE_INLINE Mask16 is_nan(F32x16 a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
MOE_INLINE F32x16 select(Mask16 m, F32x16 if_true, F32x16 if_false) {
  return {_mm512_mask_blend_ps(m.v, if_false.v, if_true.v)};
}
MOE_INLINE Mask16 less(I32x16 a, I32x16 b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
MOE_INLINE Mask16 equal(I32x16 a, I32x16 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
MOE_INLINE I32x16 select(Mask16 m, I32x16 if_true, I32x16 if_false) {
  return {_mm512_mask_blend_epi32(m.v, if_false.v, if_true.v)};
}
MOE_INLINE Mask16 nonzero_bytes(const uint8_t* p) {
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm_test_epi8_mask(b, b)};
}
MOE_INLINE Mask16 first_mask(int n) { return {first_lanes(n)}; }
// Through a register: compressing into memory is microcode on some processors. Few lanes are the
// rule, and a short store crosses fewer cache lines.
MOE_INLINE void store_compressed(int32_t* p, I32x16 a, uint32_t lanes) {
  const __m512i v = _mm512_maskz_compress_epi32(static_cast<__mmask16>(lanes), a.v);
  if (__builtin_popcount(lanes) <= 4) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_castsi512_si128(v));
  } else {
    _mm512_storeu_si512(p, v);
  }
}
template <int distance>
MOE_INLINE F32x16 swap_lanes(F32x16 a) {
  if constexpr (distance == 8) return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)};
  if constexpr (distance == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xb1)};
  return {_mm512_permute_ps(a.v, distance == 2 ? 0x4e : 0xb1)};
}
template <uint32_t pattern>
MOE_INLINE I32x16 blend_lanes(I32x16 a, I32x16 b) {
  return {_mm512_mask_blend_epi32(static_cast<__mmask16>(pattern), a.v, b.v)};
}
struct LanePair {
  F32x16 clear, set;
};
template <int distance>
MOE_INLINE LanePair pair_lanes(F32x16 a, F32x16 b) {
  constexpr int clear = distance == 8 || distance == 2 ? 0x44 : 0x88;
  constexpr int set = clear == 0x44 ? 0xee : 0xdd;
  if constexpr (distance >= 4) {
    return {{_mm512_shuffle_f32x4(a.v, b.v, clear)}, {_mm512_shuffle_f32x4(a.v, b.v, set)}};
  } else {
    return {{_mm512_shuffle_ps(a.v, b.v, clear)}, {_mm512_shuffle_ps(a.v, b.v, set)}};
  }
}
MOE_INLINE Mask16 lane_mask(uint32_t lanes) { return {static_cast<__mmask16>(lanes)}; }
MOE_INLINE uint32_t to_bitmask(Mask16 m) { return m.v; }

MOE_INLINE float reduce_add(F32x16 a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
MOE_INLINE float reduce_max(F32x16 a) { return _mm512_reduce_max_ps(a.v); }

MOE_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
MOE_INLINE void prefetch_l2(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

struct Words {
  __m512i v;  // the word in all sixteen lanes; an embedded broadcast where it is used once
};
MOE_INLINE Words broadcast_word(const uint32_t* p) {
  return {_mm512_set1_epi32(static_cast<int32_t>(*p))};
}

MOE_INLINE F32x16 dot_f32(F32x16 acc, Words x, F32x16 w) {
  return {_mm512_fmadd_ps(_mm512_castsi512_ps(x.v), w.v, acc.v)};
}

MOE_INLINE __m512 even_bf16(__m512i a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
MOE_INLINE __m512 odd_bf16(__m512i a) {
  return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
MOE_INLINE F32x16 dot_bf16(F32x16 acc, Words x, U8x64 w) {
#ifdef __AVX512BF16__
  return {_mm512_dpbf16_ps(acc.v, (__m512bh)w.v, (__m512bh)x.v)};
#else
  const __m512 first = _mm512_fmadd_ps(even_bf16(x.v), even_bf16(w.v), acc.v);
  return {_mm512_fmadd_ps(odd_bf16(x.v), odd_bf16(w.v), first)};
#endif
}

MOE_INLINE I32x16 dot_u8s8(I32x16 acc, Words x, U8x64 w) {
#ifdef __AVX512VNNI__
  // Not the intrinsic: g++ 12 sees its operand as another vector type and copies the sum in and out
  // of every step, which spills a tile of 24 sums and halves its speed.
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(w.v), "v"(x.v));
  return acc;
#else
  // vpmaddubsw saturates at 16 bits; even and odd bytes are widened instead, which is exact.
  const __m512i even = _mm512_madd_epi16(_mm512_and_si512(w.v, _mm512_set1_epi16(0xff)),
                                         _mm512_srai_epi16(_mm512_slli_epi16(x.v, 8), 8));
  const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(w.v, 8), _mm512_srai_epi16(x.v, 8));
  __m512i sum = _mm512_add_epi32(acc.v, _mm512_add_epi32(even, odd));
  __asm__("" : "+v"(sum));  // in order: g++ would make a tree of a chain, and spill its leaves
  return {sum};
#endif
}
MOE_INLINE I32x16 dot_i16(I32x16 acc, Words x, I32x16 w) {
#ifdef __AVX512VNNI__
  __asm__("vpdpwssd %2, %1, %0" : "+v"(acc.v) : "v"(w.v), "v"(x.v));
  return acc;
#else
  return {_mm512_add_epi32(acc.v, _mm512_madd_epi16(w.v, x.v))};
#endif
}

MOE_INLINE U8x64 bit_field(U8x64 a, int shift, uint8_t mask) {
#ifdef __GFNI__
  // Both at once: bit i of a byte is bit i + shift of the byte it comes from. 255 does not mask.
  if (shift != 0 && mask != 255) {
    uint64_t map = 0;
    for (int i = 0; i < 8; ++i) {
      if ((mask >> i & 1) != 0) map |= uint64_t{1} << (56 - 8 * i + i + shift);
    }
    return {_mm512_gf2p8affine_epi64_epi8(a.v, _mm512_set1_epi64(static_cast<long long>(map)), 0)};
  }
#endif
  const __m512i m = _mm512_set1_epi8(static_cast<char>(mask));
  if (shift > 0) a.v = _mm512_srli_epi16(a.v, static_cast<unsigned>(shift));
  if (shift < 0) a.v = _mm512_slli_epi16(a.v, static_cast<unsigned>(-shift));
  return {_mm512_and_si512(a.v, m)};
}
MOE_INLINE U8x64 or_bytes(U8x64 a, U8x64 b) { return {_mm512_or_si512(a.v, b.v)}; }
MOE_INLINE U8x64 sub_bytes(U8x64 a, int b) {
  return {_mm512_sub_epi8(a.v, _mm512_set1_epi8(static_cast<char>(b)))};
}
inline constexpr bool kScalesBytes = true;  // a vector of bytes times one of factors

/// The low half of a lane in its upper half as well.
MOE_INLINE __m512i repeat_half(I32x16 a) {
  return _mm512_ternarylogic_epi32(a.v, _mm512_slli_epi32(a.v, 16), _mm512_set1_epi32(0xffff),
                                   0xe4);  // mask ? a : shifted
}
/// Bytes a lane's factor times, modulo 256.
MOE_INLINE U8x64 scale_bytes(U8x64 a, I32x16 factor) {
  const __m512i upper = _mm512_set1_epi16(static_cast<short>(0xff00)), both = repeat_half(factor);
  const __m512i even = _mm512_mullo_epi16(a.v, both);
  const __m512i odd = _mm512_mullo_epi16(_mm512_and_si512(a.v, upper), both);
  return {_mm512_ternarylogic_epi32(odd, even, upper, 0xe4)};  // upper ? odd : even
}
/// The same where no product exceeds 255.
MOE_INLINE U8x64 scale_small_bytes(U8x64 a, I32x16 factor) {
  return {_mm512_mullo_epi16(a.v, repeat_half(factor))};
}
/// The same plus the bytes of start, where every such sum is a byte.
MOE_INLINE U8x64 scale_small_bytes(U8x64 a, I32x16 factor, I32x16 start) {
  return {_mm512_add_epi16(_mm512_mullo_epi16(a.v, repeat_half(factor)), start.v)};
}
/// Bytes a lane's factor of eight bits times, less `offset` times the factor: 128 high + low.
MOE_INLINE void scale_bytes(U8x64 a, I32x16 factor, int offset, U8x64& high, U8x64& low) {
  const __m512i upper = _mm512_set1_epi16(static_cast<short>(0xff00)), both = repeat_half(factor);
  const __m512i zero = _mm512_mullo_epi16(both, _mm512_set1_epi16(static_cast<short>(-offset)));
  const __m512i by_odd = _mm512_slli_epi16(both, 8), by_even = _mm512_andnot_si512(upper, both);
  const __m512i even = _mm512_add_epi16(_mm512_maddubs_epi16(a.v, by_even), zero);
  const __m512i odd = _mm512_add_epi16(_mm512_maddubs_epi16(a.v, by_odd), zero);
  low = {_mm512_and_si512(_mm512_ternarylogic_epi32(_mm512_slli_epi16(odd, 8), even, upper, 0xe4),
                          _mm512_set1_epi8(0x7f))};
  high = {_mm512_ternarylogic_epi32(_mm512_add_epi16(odd, odd), _mm512_srai_epi16(even, 7), upper,
                                    0xe4)};
}
#ifdef __GFNI__
// A number that is neither subnormal nor NaN is a map of its code's bits: seeeemmm becomes
// sEeeeeee emmm0000 with E the first exponent bit and its four complements. A third map numbers the
// others 0 to 17: twice the mantissa and the sign of subnormal numbers, 16 and 17 for NaN.
struct E4m3Rest {
  alignas(64) uint8_t low[64], high[64];
};
static constexpr E4m3Rest e4m3_rest() {
  constexpr int kSizes[9] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60, 0x7fc0};
  E4m3Rest rest{};
  for (int i = 0; i < 18; ++i) {
    rest.low[i] = static_cast<uint8_t>(kSizes[i / 2] & 255);
    rest.high[i] = static_cast<uint8_t>(kSizes[i / 2] >> 8 | i % 2 << 7);
  }
  return rest;
}
static constexpr E4m3Rest kE4m3Rest = e4m3_rest();
/// Which bits of a byte make each bit of its image, the lowest first.
static constexpr long long bit_map(const uint8_t (&bits)[8]) {
  uint64_t map = 0;
  for (int i = 0; i < 8; ++i) map |= uint64_t{bits[i]} << (56 - 8 * i);
  return static_cast<long long>(map);
}
MOE_INLINE void e4m3_pairs(U8x64 a, U8x64& first, U8x64& second) {
  constexpr long long kLow = bit_map({0, 0, 0, 0, 0x01, 0x02, 0x04, 0x08});
  constexpr long long kHigh = bit_map({0x10, 0x20, 0x40, 0x40, 0x40, 0x40, 0x40, 0x80});
  constexpr long long kRest = bit_map({0x80, 0x09, 0x0a, 0x0c, 0x08, 0x18, 0x28, 0x48});
  __m512i low = _mm512_gf2p8affine_epi64_epi8(a.v, _mm512_set1_epi64(kLow), 0);
  __m512i high = _mm512_gf2p8affine_epi64_epi8(a.v, _mm512_set1_epi64(kHigh), 0x3c);
  const __m512i rest = _mm512_gf2p8affine_epi64_epi8(a.v, _mm512_set1_epi64(kRest), 0);
  const __mmask64 odd = _mm512_cmplt_epu8_mask(rest, _mm512_set1_epi8(18));
  low = _mm512_mask_permutexvar_epi8(low, odd, rest, _mm512_load_si512(kE4m3Rest.low));
  high = _mm512_mask_permutexvar_epi8(high, odd, rest, _mm512_load_si512(kE4m3Rest.high));
  first = {_mm512_unpacklo_epi8(low, high)};
  second = {_mm512_unpackhi_epi8(low, high)};
}
#else
MOE_INLINE __m512i e4m3_tops(__m512i a) {
  // By the size: eight subnormal numbers, and NaN, whose low five bits are 31.
  const __m512i odd_ones = _mm512_castsi128_si512(
      _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
  const __m512i table =
      _mm512_inserti32x4(odd_ones, _mm_setr_epi16(0, 0, 0, 0, 0, 0, 0, 0x7fc0), 3);
  const __m512i size = _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi16(0x07f0));
  const __m512i normal = _mm512_add_epi16(size, _mm512_set1_epi16(0x3c00));
  const __mmask32 odd = _mm512_cmpge_epu16_mask(_mm512_sub_epi16(size, _mm512_set1_epi16(0x80)),
                                                _mm512_set1_epi16(0x770));
  const __m512i value =
      _mm512_mask_permutexvar_epi16(normal, odd, _mm512_srli_epi16(size, 4), table);
  return _mm512_ternarylogic_epi32(a, _mm512_set1_epi16(static_cast<short>(0x8000)), value,
                                   0xea);  // (a & top bit) | value
}
MOE_INLINE void e4m3_pairs(U8x64 a, U8x64& first, U8x64& second) {
  const __m512i zero = _mm512_setzero_si512();
  first = {e4m3_tops(_mm512_unpacklo_epi8(zero, a.v))};
  second = {e4m3_tops(_mm512_unpackhi_epi8(zero, a.v))};
}
#endif
MOE_INLINE U8x64 lookup16(U8x64 a, const uint8_t* table) {
  const __m512i t =
      _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm512_shuffle_epi8(t, a.v)};
}
MOE_INLINE U8x64 lookup8(U8x64 a, const uint8_t* table) {
#ifdef __AVX512VBMI__
  int64_t eight;
  __builtin_memcpy(&eight, table, 8);
  return {_mm512_permutexvar_epi8(a.v, _mm512_set1_epi64(eight))};
#else
  return lookup16(bit_field(a, 0, 7), table);
#endif
}
MOE_INLINE U8x64 as_bytes(I32x16 a) { return {a.v}; }
MOE_INLINE U8x64 xor_bytes(U8x64 a, uint8_t b) {
  return {_mm512_xor_si512(a.v, _mm512_set1_epi8(static_cast<char>(b)))};
}
template <int j>
MOE_INLINE F32x16 byte_to_f32(U8x64 a) {
  return {
      _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(a.v, 8 * j), _mm512_set1_epi32(255)))};
}
template <int j>
MOE_INLINE F32x16 pair_to_f32(U8x64 a) {
  if constexpr (j == 0) return {even_bf16(a.v)};
  return {odd_bf16(a.v)};
}

}  // namespace moe::MOE_ISA
