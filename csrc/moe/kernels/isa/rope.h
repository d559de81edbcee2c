#pragma once
// Rotary position embedding (Su et al. 2021) of one head. Products and sums are rounded one by one,
// as the models' own code rounds them.

#include "moe/kernels/table.h"
#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

/// Angles reach 10^6, so π/2 is taken off in double: its first part has 33 bits, so that n times it
/// is exact up to n = 2^20; beyond, the rest's error stays below float's. Written for the
/// compiler's vectoriser: no branch, no call.
static void angles(float position, const float* frequencies, int64_t half, float factor, float* cos,
                   float* sin) noexcept {
  constexpr double kMagic = 0x1.8p52;  // adding it leaves a rounded integer in the low bits
  constexpr double kHalfPiHigh = 0x1.921fb544p+0, kHalfPiLow = 0x1.0b4611a626331p-34;
  for (int64_t i = 0; i < half; ++i) {
    const double angle = position * frequencies[i];
    const double shifted = angle * 0.63661977236758134308 + kMagic;
    const double n = shifted - kMagic;
    const double r = (angle - n * kHalfPiHigh) - n * kHalfPiLow;
    const double z = r * r;
    // Taylor: |r| <= π/4 leaves 10^-10.
    double s = -1.0 / 39916800.0;
    s = s * z + 1.0 / 362880.0;
    s = s * z - 1.0 / 5040.0;
    s = s * z + 1.0 / 120.0;
    s = s * z - 1.0 / 6.0;
    s = s * z * r + r;
    double c = 1.0 / 479001600.0;
    c = c * z - 1.0 / 3628800.0;
    c = c * z + 1.0 / 40320.0;
    c = c * z - 1.0 / 720.0;
    c = c * z + 1.0 / 24.0;
    c = c * z - 0.5;
    c = c * z + 1.0;
    int64_t quadrant;
    std::memcpy(&quadrant, &shifted, 8);
    const double cosine = (quadrant & 1) != 0 ? s : c, sine = (quadrant & 1) != 0 ? c : s;
    cos[i] = static_cast<float>(((quadrant + 1) & 2) != 0 ? -cosine : cosine) * factor;
    sin[i] = static_cast<float>((quadrant & 2) != 0 ? -sine : sine) * factor;
  }
}

static void rotate_halves(const float* x, const float* cos, const float* sin, int64_t half,
                          float* out) noexcept {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int rest = static_cast<int>(half - i < kLanes ? half - i : kLanes);
    const F32x16 a = load_first(x + i, rest), b = load_first(x + half + i, rest);
    const F32x16 c = load_first(cos + i, rest), s = load_first(sin + i, rest);
    store_first(out + i, sub(mul(a, c), mul(b, s)), rest);
    store_first(out + half + i, add(mul(b, c), mul(a, s)), rest);
  }
}

static void rotate_pairs(const float* x, const float* cos, const float* sin, int64_t n,
                         float* out) noexcept {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int rest = static_cast<int>(n - i < kLanes ? n - i : kLanes);
    const F32x16 v = load_first(x + i, rest);
    const F32x16 y =
        add(mul(v, load_first(cos + i, rest)), mul(swap_lanes<1>(v), load_first(sin + i, rest)));
    store_first(out + i, y, rest);
  }
}

static constexpr RopeKernels kRopeKernels = {&angles, &rotate_halves, &rotate_pairs};

}  // namespace moe::MOE_ISA
