#pragma once
// The lanes' sums of several vectors at once: the end of a dot product whose terms lie along the
// lanes. Every sum is the tree of reduce_add, ((i, i+8), (i, i+4), (i, i+2), (i, i+1)), so it does
// not matter which vectors are summed together.

#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

#if defined(MOE_ISA_scalar)

inline constexpr int kSumVectors = 1;
MOE_INLINE void sum_lanes(const F32x16 (&a)[1], float* out) { *out = reduce_add(a[0]); }

#elif !defined(__AVX512F__)

inline constexpr int kSumVectors = 4;
MOE_INLINE void sum_lanes(const F32x16 (&a)[4], float* out) {
  __m256 eight[4];
  MOE_UNROLL
  for (int i = 0; i < 4; ++i) eight[i] = _mm256_add_ps(a[i].lo, a[i].hi);
  // Sums 0 and 1, then 2 and 3, in the two halves of one register.
  const auto four = [&](int i) MOE_INLINE_LAMBDA {
    return _mm256_add_ps(_mm256_permute2f128_ps(eight[i], eight[i + 1], 0x20),
                         _mm256_permute2f128_ps(eight[i], eight[i + 1], 0x31));
  };
  const __m256 even = four(0), odd = four(2);
  const __m256 two =
      _mm256_add_ps(_mm256_shuffle_ps(even, odd, 0x44), _mm256_shuffle_ps(even, odd, 0xee));
  const __m256 one =
      _mm256_add_ps(_mm256_shuffle_ps(two, two, 0x88), _mm256_shuffle_ps(two, two, 0xdd));
  // Halves [0, 2, …] and [1, 3, …].
  _mm_storeu_ps(out, _mm_unpacklo_ps(_mm256_castps256_ps128(one), _mm256_extractf128_ps(one, 1)));
}

#else

inline constexpr int kSumVectors = 16;
MOE_INLINE void sum_lanes(const F32x16 (&a)[16], float* out) {
  // Vectors k, k + 4, k + 8, k + 12 come to lie in the quarters of four[k].
  __m512 four[4];
  MOE_UNROLL
  for (int k = 0; k < 4; ++k) {
    const __m512 x = _mm512_add_ps(_mm512_shuffle_f32x4(a[k].v, a[k + 4].v, 0x44),
                                   _mm512_shuffle_f32x4(a[k].v, a[k + 4].v, 0xee));
    const __m512 y = _mm512_add_ps(_mm512_shuffle_f32x4(a[k + 8].v, a[k + 12].v, 0x44),
                                   _mm512_shuffle_f32x4(a[k + 8].v, a[k + 12].v, 0xee));
    four[k] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
  }
  __m512 two[2];
  MOE_UNROLL
  for (int k = 0; k < 2; ++k) {
    two[k] = _mm512_add_ps(_mm512_shuffle_ps(four[2 * k], four[2 * k + 1], 0x44),
                           _mm512_shuffle_ps(four[2 * k], four[2 * k + 1], 0xee));
  }
  _mm512_storeu_ps(out, _mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88),
                                      _mm512_shuffle_ps(two[0], two[1], 0xdd)));
}

#endif

/// The largest lane of each of sixteen vectors.
MOE_INLINE void max_lanes(const F32x16 (&a)[16], float* out) {
#if defined(__AVX512F__)
  __m512 four[4];
  MOE_UNROLL
  for (int k = 0; k < 4; ++k) {
    const __m512 x = _mm512_max_ps(_mm512_shuffle_f32x4(a[k].v, a[k + 4].v, 0x44),
                                   _mm512_shuffle_f32x4(a[k].v, a[k + 4].v, 0xee));
    const __m512 y = _mm512_max_ps(_mm512_shuffle_f32x4(a[k + 8].v, a[k + 12].v, 0x44),
                                   _mm512_shuffle_f32x4(a[k + 8].v, a[k + 12].v, 0xee));
    four[k] = _mm512_max_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
  }
  __m512 two[2];
  MOE_UNROLL
  for (int k = 0; k < 2; ++k) {
    two[k] = _mm512_max_ps(_mm512_shuffle_ps(four[2 * k], four[2 * k + 1], 0x44),
                           _mm512_shuffle_ps(four[2 * k], four[2 * k + 1], 0xee));
  }
  _mm512_storeu_ps(out, _mm512_max_ps(_mm512_shuffle_ps(two[0], two[1], 0x88),
                                      _mm512_shuffle_ps(two[0], two[1], 0xdd)));
#else
  for (int i = 0; i < 16; ++i) out[i] = reduce_max(a[i]);
#endif
}

}  // namespace moe::MOE_ISA
