#pragma once
// Sixteen vectors of sixteen lanes, rows into columns.

#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

#if defined(MOE_ISA_scalar)

MOE_INLINE void transpose(F32x16 (&a)[16]) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < i; ++j) {
      const float upper = a[j].v[i];
      a[j].v[i] = a[i].v[j];
      a[i].v[j] = upper;
    }
  }
}

#elif defined(MOE_ISA_avx2)

MOE_INLINE void transpose_half(__m256 (&a)[8]) {
  __m256 pairs[8], quads[8];
  MOE_UNROLL
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  MOE_UNROLL
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  MOE_UNROLL
  for (int i = 0; i < 4; ++i) {
    a[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    a[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

MOE_INLINE void transpose(F32x16 (&a)[16]) {
  // Four quarters of 8 × 8; one half of the columns at a time, to stay within the registers.
  __m256 top[8], bottom[8];
  MOE_UNROLL
  for (int i = 0; i < 8; ++i) {
    top[i] = a[i].hi;
    bottom[i] = a[i + 8].lo;
  }
  transpose_half(top);
  transpose_half(bottom);
  __m256 first[8], last[8];
  MOE_UNROLL
  for (int i = 0; i < 8; ++i) {
    first[i] = a[i].lo;
    last[i] = a[i + 8].hi;
  }
  transpose_half(first);
  transpose_half(last);
  MOE_UNROLL
  for (int i = 0; i < 8; ++i) {
    a[i] = {first[i], bottom[i]};
    a[i + 8] = {top[i], last[i]};
  }
}

#else

MOE_INLINE void transpose(F32x16 (&a)[16]) {
  __m512 pairs[16], quads[16];
  MOE_UNROLL
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(a[i].v, a[i + 1].v);
    pairs[i + 1] = _mm512_unpackhi_ps(a[i].v, a[i + 1].v);
  }
  MOE_UNROLL
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  // quads[4r + c] holds columns c, c+4, c+8, c+12 of rows 4r to 4r+3: quarters to be transposed.
  MOE_UNROLL
  for (int c = 0; c < 4; ++c) {
    const __m512 even01 = _mm512_shuffle_f32x4(quads[c], quads[c + 4], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(quads[c], quads[c + 4], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(quads[c + 8], quads[c + 12], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(quads[c + 8], quads[c + 12], 0xdd);
    a[c].v = _mm512_shuffle_f32x4(even01, even23, 0x88);
    a[c + 8].v = _mm512_shuffle_f32x4(even01, even23, 0xdd);
    a[c + 4].v = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    a[c + 12].v = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
  }
}

#endif

}  // namespace moe::MOE_ISA
