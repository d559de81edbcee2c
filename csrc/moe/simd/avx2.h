#pragma once
// AVX2, FMA, F16C: sixteen lanes are two registers.

#include <immintrin.h>

namespace moe::MOE_ISA {

inline constexpr int kLanes = 16;
// 6 × 2 accumulators, 2 weights, 1 broadcast: 15 of 16 registers.
inline constexpr int kTileRows = 6;
inline constexpr int kFloatTileRows = 6;
inline constexpr int kIntegerTileRows = 6;
inline constexpr int kTilePanels = 1;
inline constexpr int kPanelTileRows = 0;  // no tile has more panels than one

struct F32x16 {
  __m256 lo, hi;
};
struct I32x16 {
  __m256i lo, hi;
};
struct U8x64 {
  __m256i lo, hi;
};
struct Mask16 {
  __m256 lo, hi;
};

MOE_INLINE F32x16 zero_f32() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
MOE_INLINE F32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
MOE_INLINE I32x16 set1_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }

MOE_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
MOE_INLINE __m256i load_half(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
MOE_INLINE I32x16 load_i32(const int32_t* p) { return {load_half(p), load_half(p + 8)}; }
MOE_INLINE I32x16 load_i32(const uint8_t* p) {
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(b), _mm256_cvtepu8_epi32(_mm_srli_si128(b, 8))};
}
MOE_INLINE I32x16 load_i32(const int8_t* p) {
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi8_epi32(b), _mm256_cvtepi8_epi32(_mm_srli_si128(b, 8))};
}
MOE_INLINE U8x64 load_u8(const void* p) {
  return {load_half(p), load_half(static_cast<const char*>(p) + 32)};
}
MOE_INLINE void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
MOE_INLINE void stream(float* p, F32x16 a) {
  _mm256_stream_ps(p, a.lo);
  _mm256_stream_ps(p + 8, a.hi);
}
MOE_INLINE void fence_streams() { _mm_sfence(); }
MOE_INLINE void store_half(void* p, __m256i a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
MOE_INLINE void store_i32(int32_t* p, I32x16 a) {
  store_half(p, a.lo);
  store_half(p + 8, a.hi);
}
MOE_INLINE void store_u8(void* p, U8x64 a) {
  store_half(p, a.lo);
  store_half(static_cast<char*>(p) + 32, a.hi);
}
MOE_INLINE void store_i8(int8_t* p, I32x16 a) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

/// Lanes below n: all ones.
MOE_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
MOE_INLINE F32x16 load_first(const float* p, int n) {
  return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
}
MOE_INLINE void store_first(float* p, F32x16 a, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), a.lo);
  _mm256_maskstore_ps(p + 8, first_lanes(n - 8), a.hi);
}

MOE_INLINE __m256 widen_bf16(const bf16* p) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
MOE_INLINE F32x16 load(const bf16* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
MOE_INLINE F32x16 load(const f16* p) {
  const auto* h = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}
MOE_INLINE __m256 widen_i8(const int8_t* p) {
  const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b));
}
MOE_INLINE F32x16 load(const int8_t* p) { return {widen_i8(p), widen_i8(p + 8)}; }
MOE_INLINE __m128i narrow_bf16(__m256 a) {
  const __m256i u = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  return _mm256_castsi256_si128(packed);
}
MOE_INLINE void store(bf16* p, F32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bf16(a.lo));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), narrow_bf16(a.hi));
}
MOE_INLINE void store(f16* p, F32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8),
                   _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}

MOE_INLINE F32x16 add(F32x16 a, F32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
MOE_INLINE F32x16 sub(F32x16 a, F32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
MOE_INLINE F32x16 mul(F32x16 a, F32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
MOE_INLINE F32x16 div(F32x16 a, F32x16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
MOE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
MOE_INLINE F32x16 max(F32x16 a, F32x16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
MOE_INLINE F32x16 min(F32x16 a, F32x16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
MOE_INLINE F32x16 sqrt(F32x16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }

MOE_INLINE I32x16 bits(F32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
MOE_INLINE F32x16 from_bits(I32x16 a) {
  return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)};
}
MOE_INLINE I32x16 and_bits(I32x16 a, I32x16 b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
MOE_INLINE F32x16 abs(F32x16 a) { return from_bits(and_bits(bits(a), set1_i32(0x7fffffff))); }
MOE_INLINE I32x16 add(I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
MOE_INLINE I32x16 mul(I32x16 a, I32x16 b) {
  return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)};
}
MOE_INLINE I32x16 sub(I32x16 a, I32x16 b) {
  return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
MOE_INLINE I32x16 shift_left(I32x16 a, int count) {
  return {_mm256_slli_epi32(a.lo, count), _mm256_slli_epi32(a.hi, count)};
}
MOE_INLINE I32x16 xor_bits(I32x16 a, I32x16 b) {
  return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)};
}
MOE_INLINE I32x16 shift_right(I32x16 a, int count) {
  return {_mm256_srai_epi32(a.lo, count), _mm256_srai_epi32(a.hi, count)};
}
MOE_INLINE I32x16 max(I32x16 a, I32x16 b) {
  return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
}
MOE_INLINE I32x16 min(I32x16 a, I32x16 b) {
  return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)};
}
MOE_INLINE I32x16 round_to_i32(F32x16 a) {
  return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)};
}
MOE_INLINE F32x16 to_f32(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }

MOE_INLINE Mask16 less(F32x16 a, F32x16 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
MOE_INLINE Mask16 equal(F32x16 a, F32x16 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ)};
}
MOE_INLINE Mask16 is_nan(F32x16 a) {
  return {_mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q), _mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q)};
}
MOE_INLINE F32x16 select(Mask16 m, F32x16 if_true, F32x16 if_false) {
  return {_mm256_blendv_ps(if_false.lo, if_true.lo, m.lo),
          _mm256_blendv_ps(if_false.hi, if_true.hi, m.hi)};
}
MOE_INLINE Mask16 less(I32x16 a, I32x16 b) {
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(b.lo, a.lo)),
          _mm256_castsi256_ps(_mm256_cmpgt_epi32(b.hi, a.hi))};
}
MOE_INLINE Mask16 equal(I32x16 a, I32x16 b) {
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.lo, b.lo)),
          _mm256_castsi256_ps(_mm256_cmpeq_epi32(a.hi, b.hi))};
}
MOE_INLINE I32x16 select(Mask16 m, I32x16 if_true, I32x16 if_false) {
  return bits(select(m, from_bits(if_true), from_bits(if_false)));
}
MOE_INLINE Mask16 nonzero_bytes(const uint8_t* p) {
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const I32x16 wide = {_mm256_cvtepu8_epi32(b), _mm256_cvtepu8_epi32(_mm_srli_si128(b, 8))};
  return less(set1_i32(0), wide);
}
MOE_INLINE Mask16 first_mask(int n) {
  return {_mm256_castsi256_ps(first_lanes(n)), _mm256_castsi256_ps(first_lanes(n - 8))};
}
MOE_INLINE void store_compressed(int32_t* p, I32x16 a, uint32_t lanes) {
  int32_t all[16];
  store_i32(all, a);
  for (; lanes != 0; lanes &= lanes - 1) *p++ = all[__builtin_ctz(lanes)];
}
template <int distance>
MOE_INLINE F32x16 swap_lanes(F32x16 a) {
  if constexpr (distance == 8) return {a.hi, a.lo};
  if constexpr (distance == 4) {
    return {_mm256_permute2f128_ps(a.lo, a.lo, 1), _mm256_permute2f128_ps(a.hi, a.hi, 1)};
  }
  constexpr int order = distance == 2 ? 0x4e : 0xb1;
  return {_mm256_permute_ps(a.lo, order), _mm256_permute_ps(a.hi, order)};
}
template <uint32_t pattern>
MOE_INLINE I32x16 blend_lanes(I32x16 a, I32x16 b) {
  return {_mm256_blend_epi32(a.lo, b.lo, pattern & 255),
          _mm256_blend_epi32(a.hi, b.hi, pattern >> 8)};
}
struct LanePair {
  F32x16 clear, set;
};
template <int distance>
MOE_INLINE LanePair pair_lanes(F32x16 a, F32x16 b) {
  if constexpr (distance == 8) return {{a.lo, b.lo}, {a.hi, b.hi}};
  if constexpr (distance == 4) {
    return {{_mm256_permute2f128_ps(a.lo, a.hi, 0x20), _mm256_permute2f128_ps(b.lo, b.hi, 0x20)},
            {_mm256_permute2f128_ps(a.lo, a.hi, 0x31), _mm256_permute2f128_ps(b.lo, b.hi, 0x31)}};
  }
  constexpr int clear = distance == 2 ? 0x44 : 0x88, set = distance == 2 ? 0xee : 0xdd;
  return {{_mm256_shuffle_ps(a.lo, b.lo, clear), _mm256_shuffle_ps(a.hi, b.hi, clear)},
          {_mm256_shuffle_ps(a.lo, b.lo, set), _mm256_shuffle_ps(a.hi, b.hi, set)}};
}
MOE_INLINE Mask16 lane_mask(uint32_t lanes) {
  const __m256i all = _mm256_set1_epi32(static_cast<int32_t>(lanes));
  const __m256i lo = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), hi = _mm256_slli_epi32(lo, 8);
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, lo), lo)),
          _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, hi), hi))};
}
MOE_INLINE uint32_t to_bitmask(Mask16 m) {
  return static_cast<uint32_t>(_mm256_movemask_ps(m.lo)) |
         (static_cast<uint32_t>(_mm256_movemask_ps(m.hi)) << 8);
}

MOE_INLINE float reduce_add(F32x16 a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
MOE_INLINE float reduce_max(F32x16 a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

MOE_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
MOE_INLINE void prefetch_l2(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

struct Words {
  __m256i v;  // the word in all eight lanes
};
MOE_INLINE Words broadcast_word(const uint32_t* p) {
  return {_mm256_set1_epi32(static_cast<int32_t>(*p))};
}

MOE_INLINE F32x16 dot_f32(F32x16 acc, Words x, F32x16 w) {
  const __m256 value = _mm256_castsi256_ps(x.v);
  return {_mm256_fmadd_ps(value, w.lo, acc.lo), _mm256_fmadd_ps(value, w.hi, acc.hi)};
}

MOE_INLINE __m256 even_bf16(__m256i a) { return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)); }
MOE_INLINE __m256 odd_bf16(__m256i a) {
  return _mm256_castsi256_ps(_mm256_and_si256(a, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
MOE_INLINE F32x16 dot_bf16(F32x16 acc, Words x, U8x64 w) {
  const __m256 x0 = even_bf16(x.v), x1 = odd_bf16(x.v);
  const __m256 lo = _mm256_fmadd_ps(x0, even_bf16(w.lo), acc.lo);
  const __m256 hi = _mm256_fmadd_ps(x0, even_bf16(w.hi), acc.hi);
  return {_mm256_fmadd_ps(x1, odd_bf16(w.lo), lo), _mm256_fmadd_ps(x1, odd_bf16(w.hi), hi)};
}

/// Keeps a chain of additions: g++ would make a tree of it, whose leaves it has to spill.
MOE_INLINE __m256i in_order(__m256i sum) {
  __asm__("" : "+x"(sum));
  return sum;
}

// AVX2's own product of unsigned and signed bytes saturates at 16 bits; even and odd bytes are
// widened instead, which is exact.
MOE_INLINE __m256i dot_half(__m256i acc, __m256i x, __m256i w) {
#ifdef __AVXVNNI__
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(w), "x"(x));
  return acc;
#else
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(0xff)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(x, 8));
  return in_order(_mm256_add_epi32(acc, _mm256_add_epi32(even, odd)));
#endif
}
MOE_INLINE I32x16 dot_u8s8(I32x16 acc, Words x, U8x64 w) {
  return {dot_half(acc.lo, x.v, w.lo), dot_half(acc.hi, x.v, w.hi)};
}
MOE_INLINE I32x16 dot_i16(I32x16 acc, Words x, I32x16 w) {
  return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(w.lo, x.v)),
          _mm256_add_epi32(acc.hi, _mm256_madd_epi16(w.hi, x.v))};
}

#ifndef __AVXVNNI__
#define MOE_PAIR_SUMS  // bytes' products are cheapest as sums of pairs (isa/narrow_tiles.h)
inline constexpr bool kScalesBytes = false;

struct I16x32 {
  __m256i lo, hi;
};
MOE_INLINE I16x32 set1_i16(int16_t x) { return {_mm256_set1_epi16(x), _mm256_set1_epi16(x)}; }
MOE_INLINE I16x32 load_i16(const void* p) {
  return {load_half(p), load_half(static_cast<const char*>(p) + 32)};
}
MOE_INLINE void store_i16(void* p, I16x32 a) {
  store_half(p, a.lo);
  store_half(static_cast<char*>(p) + 32, a.hi);
}
MOE_INLINE I16x32 add(I16x32 a, I16x32 b) {
  return {in_order(_mm256_add_epi16(a.lo, b.lo)), in_order(_mm256_add_epi16(a.hi, b.hi))};
}
/// Sums of two neighbours' products; exact where no byte of w exceeds 129 and none of x is −128.
MOE_INLINE I16x32 pair_products(Words x, U8x64 w) {
  return {_mm256_maddubs_epi16(w.lo, x.v), _mm256_maddubs_epi16(w.hi, x.v)};
}
/// The same of signed bytes w, given their sizes as well; no byte of x is −128.
MOE_INLINE I16x32 pair_products(Words x, U8x64 w, U8x64 sizes) {
  return {_mm256_maddubs_epi16(sizes.lo, _mm256_sign_epi8(x.v, w.lo)),
          _mm256_maddubs_epi16(sizes.hi, _mm256_sign_epi8(x.v, w.hi))};
}
MOE_INLINE U8x64 byte_sizes(U8x64 a) { return {_mm256_abs_epi8(a.lo), _mm256_abs_epi8(a.hi)}; }
/// acc + a's pairs times b's.
MOE_INLINE I32x16 dot_i16(I32x16 acc, I16x32 a, I16x32 b) {
  return {in_order(_mm256_add_epi32(acc.lo, _mm256_madd_epi16(a.lo, b.lo))),
          in_order(_mm256_add_epi32(acc.hi, _mm256_madd_epi16(a.hi, b.hi)))};
}
MOE_INLINE I32x16 dot_i16(I32x16 acc, Words a, I16x32 b) { return dot_i16(acc, {a.v, a.v}, b); }
/// Bytes of sixteen lanes.
struct U8x16 {
  __m128i v;
};
MOE_INLINE U8x16 load_row(const void* p) {
  return {_mm_loadu_si128(static_cast<const __m128i*>(p))};
}
MOE_INLINE U8x16 bit_field(U8x16 a, int shift, uint8_t mask) {
  if (shift > 0) a.v = _mm_srli_epi16(a.v, shift);
  if (shift < 0) a.v = _mm_slli_epi16(a.v, -shift);
  return {_mm_and_si128(a.v, _mm_set1_epi8(static_cast<char>(mask)))};
}
MOE_INLINE U8x16 or_bytes(U8x16 a, U8x16 b) { return {_mm_or_si128(a.v, b.v)}; }
/// A lane of 32 bits has the bytes of a and, above it, b, widened.
MOE_INLINE I16x32 pair_bytes(U8x16 a, U8x16 b) {
  return {_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a.v, b.v)),
          _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a.v, b.v))};
}
MOE_INLINE I16x32 pair_signed_bytes(U8x16 a, U8x16 b) {
  return {_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a.v, b.v)),
          _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a.v, b.v))};
}
#else
inline constexpr bool kScalesBytes = true;

/// The low half of a lane in its upper half as well.
MOE_INLINE __m256i repeat_half(__m256i a) {
  return _mm256_blend_epi16(a, _mm256_slli_epi32(a, 16), 0xaa);
}
/// Bytes a lane's factor times, plus those of start, where every such sum is a byte.
MOE_INLINE U8x64 scale_small_bytes(U8x64 a, I32x16 factor, I32x16 start) {
  return {_mm256_add_epi16(_mm256_mullo_epi16(a.lo, repeat_half(factor.lo)), start.lo),
          _mm256_add_epi16(_mm256_mullo_epi16(a.hi, repeat_half(factor.hi)), start.hi)};
}
MOE_INLINE U8x64 scale_small_bytes(U8x64 a, I32x16 factor) {
  return {_mm256_mullo_epi16(a.lo, repeat_half(factor.lo)),
          _mm256_mullo_epi16(a.hi, repeat_half(factor.hi))};
}
#endif

MOE_INLINE U8x64 bit_field(U8x64 a, int shift, uint8_t mask) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  if (shift > 0) a = {_mm256_srli_epi16(a.lo, shift), _mm256_srli_epi16(a.hi, shift)};
  if (shift < 0) a = {_mm256_slli_epi16(a.lo, -shift), _mm256_slli_epi16(a.hi, -shift)};
  return {_mm256_and_si256(a.lo, m), _mm256_and_si256(a.hi, m)};
}
MOE_INLINE U8x64 or_bytes(U8x64 a, U8x64 b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
/// Bytes of bfloat16 numbers: a normal one's are its code's bits and 0x3c00; what the eight
/// subnormal ones differ by is looked up, where any other index (128 and more) finds 0.
MOE_INLINE void e4m3_half(__m256i a, __m256i& first, __m256i& second) {
  const auto byte = [](int x) MOE_INLINE_LAMBDA { return _mm256_set1_epi8(static_cast<char>(x)); };
  const __m256i low_rest = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -16, 96, -112, -64, -48, -32, -16, 0, 0, 0, 0, 0, 0, 0, 0));
  const __m256i high_rest = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(-60, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
  const __m256i size = _mm256_and_si256(a, byte(0x7f));
  const __m256i index = _mm256_add_epi8(size, byte(0x70));
  const __m256i nan = _mm256_cmpeq_epi8(size, byte(0x7f));
  __m256i low = _mm256_and_si256(_mm256_slli_epi16(a, 4), byte(0xf0));
  low = _mm256_add_epi8(low, _mm256_shuffle_epi8(low_rest, index));
  low = _mm256_xor_si256(low, _mm256_and_si256(nan, byte(0x30)));
  __m256i high = _mm256_and_si256(_mm256_srli_epi16(a, 4), byte(0x07));
  high = _mm256_add_epi8(_mm256_add_epi8(high, byte(0x3c)), _mm256_shuffle_epi8(high_rest, index));
  high = _mm256_or_si256(
      high, _mm256_or_si256(_mm256_and_si256(a, byte(0x80)), _mm256_and_si256(nan, byte(0x7f))));
  first = _mm256_unpacklo_epi8(low, high);
  second = _mm256_unpackhi_epi8(low, high);
}
MOE_INLINE void e4m3_pairs(U8x64 a, U8x64& first, U8x64& second) {
  e4m3_half(a.lo, first.lo, second.lo);
  e4m3_half(a.hi, first.hi, second.hi);
}
MOE_INLINE U8x64 lookup16(U8x64 a, const uint8_t* table) {
  const __m256i t =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(t, a.lo), _mm256_shuffle_epi8(t, a.hi)};
}
MOE_INLINE U8x64 lookup8(U8x64 a, const uint8_t* table) {
  return lookup16(bit_field(a, 0, 7), table);
}
MOE_INLINE U8x64 as_bytes(I32x16 a) { return {a.lo, a.hi}; }
MOE_INLINE U8x64 xor_bytes(U8x64 a, uint8_t b) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(b));
  return {_mm256_xor_si256(a.lo, m), _mm256_xor_si256(a.hi, m)};
}
template <int j>
MOE_INLINE F32x16 byte_to_f32(U8x64 a) {
  const __m256i m = _mm256_set1_epi32(255);
  return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(a.lo, 8 * j), m)),
          _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(a.hi, 8 * j), m))};
}
template <int j>
MOE_INLINE F32x16 pair_to_f32(U8x64 a) {
  if constexpr (j == 0) return {even_bf16(a.lo), even_bf16(a.hi)};
  return {odd_bf16(a.lo), odd_bf16(a.hi)};
}

}  // namespace moe::MOE_ISA
