#pragma once
// Floats as sums of bfloat16 numbers, eight bits in each, for products of pairs in tiles.

#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

/// Thirty-two numbers to the nearest bfloat16 ones, in order, and what is left of them.
struct Rounded {
  __m512i pairs;
  F32x16 left[2];
};
MOE_INLINE Rounded round_to_pairs(F32x16 a, F32x16 b) {
  Rounded to;
  to.pairs = (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v);
  const F32x16 first = {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(to.pairs)), 16))};
  const F32x16 second = {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(to.pairs, 1)), 16))};
  to.left[0] = sub(a, first);
  to.left[1] = sub(b, second);
  return to;
}

/// Words of two vectors' numbers, upper halves of x and of y: exact for bfloat16 numbers, what
/// lies before the cut for others.
MOE_INLINE __m512i pair_words(__m512i x, __m512i y) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  // A shift of whole lanes, as that of words has only one port.
  return _mm512_ternarylogic_epi32(_mm512_bsrli_epi128(x, 2), y, upper, 0xd8);
}
/// What lies before the cut, and behind.
MOE_INLINE __m512i cut(__m512i a) {
  return _mm512_and_si512(a, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
}
MOE_INLINE F32x16 behind_cut(F32x16 a) { return sub(a, from_bits({cut(bits(a).v)})); }

}  // namespace moe::MOE_ISA
