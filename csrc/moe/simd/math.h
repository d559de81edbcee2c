#pragma once
// Elementary functions over the vocabulary: the same polynomial, hence nearly the same bits, for
// every instruction set.

#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

/// e^x = p · 2^n for |x| < 89: n·ln2 is taken off x, then a degree-6 polynomial (Cephes' expf).
MOE_INLINE F32x16 exp_parts(F32x16 x, I32x16* n) {
  *n = round_to_i32(mul(x, set1(1.44269504088896341f)));
  const F32x16 nf = to_f32(*n);
  F32x16 r = fma(nf, set1(-0.693359375f), x);
  r = fma(nf, set1(2.12194440e-4f), r);
  F32x16 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  return add(fma(mul(p, r), r, r), set1(1.0f));
}

/// e^x to about 1 ulp. Below -86.5 it is 0, above 88.7 infinity; NaN stays NaN.
MOE_INLINE F32x16 exp(F32x16 x) {
  const F32x16 low = set1(-86.5f), high = set1(88.72283f);
  I32x16 n;
  const F32x16 p = exp_parts(min(max(x, low), high), &n);
  // 2^n in two factors: n = 128 alone would leave the exponent's range.
  const I32x16 half = sub(n, set1_i32(1));
  const F32x16 scale = from_bits(shift_left(add(half, set1_i32(127)), 23));
  F32x16 y = mul(mul(p, scale), set1(2.0f));
  y = select(less(x, low), zero_f32(), y);
  y = select(less(high, x), set1(__builtin_inff()), y);
  return select(is_nan(x), x, y);
}

/// exp() of what is not above 0: the same bits without the cases that cannot be.
MOE_INLINE F32x16 exp_of_negative(F32x16 x) {
  I32x16 n;
  const F32x16 p = exp_parts(x, &n);
  const F32x16 y = from_bits(add(bits(p), shift_left(n, 23)));
  return select(less(x, set1(-86.5f)), zero_f32(), y);
}

/// e^x for -86.5 <= x <= 88.3 (not checked, NaN not kept): exp() without its special cases.
MOE_INLINE F32x16 exp_bounded(F32x16 x) {
  I32x16 n;
  const F32x16 p = exp_parts(x, &n);
  return from_bits(add(bits(p), shift_left(n, 23)));
}

/// 1 / (1 + e^-x)
MOE_INLINE F32x16 sigmoid(F32x16 x) {
  const F32x16 one = set1(1.0f);
  return div(one, add(one, exp(sub(zero_f32(), x))));
}

/// tanh(x) = 1 - 2 / (e^2x + 1)
MOE_INLINE F32x16 tanh(F32x16 x) {
  const F32x16 one = set1(1.0f);
  return sub(one, div(set1(2.0f), add(exp(add(x, x)), one)));
}

/// log(1 + e^x) = max(x, 0) + log1p(u), u = e^-|x| in (0, 1], and log1p(u) = 2·atanh(s), s = u / (2
/// + u) <= 1/3: eight terms reach float's precision. NaN stays NaN.
MOE_INLINE F32x16 softplus(F32x16 x) {
  const F32x16 u = exp(sub(zero_f32(), abs(x)));
  const F32x16 s = div(u, add(u, set1(2.0f)));
  const F32x16 z = mul(s, s);
  F32x16 p = set1(1.0f / 15.0f);
  p = fma(p, z, set1(1.0f / 13.0f));
  p = fma(p, z, set1(1.0f / 11.0f));
  p = fma(p, z, set1(1.0f / 9.0f));
  p = fma(p, z, set1(1.0f / 7.0f));
  p = fma(p, z, set1(1.0f / 5.0f));
  p = fma(p, z, set1(1.0f / 3.0f));
  p = fma(p, z, set1(1.0f));
  return fma(add(s, s), p, max(x, zero_f32()));
}

/// x · sigmoid(x) (Elfwing et al. 2017). -inf gives 0, as the limit does.
MOE_INLINE F32x16 silu(F32x16 x) {
  const F32x16 y = div(x, add(set1(1.0f), exp(sub(zero_f32(), x))));
  return select(equal(x, set1(-__builtin_inff())), zero_f32(), y);
}

/// GELU, tanh form (Hendrycks & Gimpel 2016).
MOE_INLINE F32x16 gelu_tanh(F32x16 x) {
  const F32x16 inner = mul(set1(0.7978845608028654f), fma(mul(mul(x, x), x), set1(0.044715f), x));
  return mul(mul(set1(0.5f), x), add(set1(1.0f), tanh(inner)));
}

/// erf to 1.5e-7 absolute (Abramowitz & Stegun 7.1.26).
MOE_INLINE F32x16 erf(F32x16 x) {
  const F32x16 a = abs(x);
  const F32x16 t = div(set1(1.0f), fma(a, set1(0.3275911f), set1(1.0f)));
  F32x16 p = set1(1.061405429f);
  p = fma(p, t, set1(-1.453152027f));
  p = fma(p, t, set1(1.421413741f));
  p = fma(p, t, set1(-0.284496736f));
  p = fma(p, t, set1(0.254829592f));
  const F32x16 y = sub(set1(1.0f), mul(mul(p, t), exp(sub(zero_f32(), mul(a, a)))));
  return select(less(x, zero_f32()), sub(zero_f32(), y), y);
}

/// x · Φ(x): GELU, exact form (Hendrycks & Gimpel 2016).
MOE_INLINE F32x16 gelu(F32x16 x) {
  return mul(mul(set1(0.5f), x), add(set1(1.0f), erf(mul(x, set1(0.70710678118654752f)))));
}

}  // namespace moe::MOE_ISA
