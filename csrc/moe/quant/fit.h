#pragma once
// Finding the scales of a group of weights: the ones of (nearly) least squared error, by trying a
// few and solving for the best scale of the codes that each gives.

#include <cstdint>

namespace moe {

/// The value of x that is largest without its sign.
float signed_largest(const float* x, int n);

/// d for codes q = round(x / d) in [low, high] with low < 0 < high: several scales around the
/// one that puts the largest value on `low`, each followed by d = Σ x q / Σ q² of its codes. n is a
/// multiple of 8. 0 if all are 0.
float fit_scale(const float* x, int n, int low, int high);

/// d for codes −1, 0, 1 as fit_scale; n is a multiple of 8.
float fit_ternary(const float* x, int n);

struct Affine {
  float scale, min;
};
/// x ≈ scale · q + min with q in [0, levels], scale ≥ 0 and min ≤ 0: a search over scales, each
/// followed by the least-squares solution for its codes (ggml's make_qkx2_quants does the same). n
/// is a multiple of 8.
Affine fit_affine(const float* x, int n, int levels);

/// A few ascending integers in [−128, 127], and which one is the nearest to x: found by x's half
/// units, since the border between two of them is a whole number of halves.
struct NearestTable {
  int low, high;
  uint8_t code[512];
  int8_t value[512];

  template <int count>
  constexpr explicit NearestTable(const int8_t (&values)[count])
      : low(values[0]), high(values[count - 1]), code(), value() {
    int nearest = 0;
    for (int i = 0; i < 512; ++i) {
      while (nearest + 1 < count && i - 256 >= values[nearest] + values[nearest + 1]) ++nearest;
      code[i] = static_cast<uint8_t>(nearest);
      value[i] = values[nearest];
    }
  }
  /// The entry of x; NaN counts as the lowest.
  static int index(float x) {
    const float halves = x * 2.0f + 256.0f;
    return static_cast<int>(halves > 0.0f ? (halves < 511.0f ? halves : 511.0f) : 0.0f);
  }
};

/// d for codes of the table's values, as fit_scale.
float fit_table(const float* x, int n, const NearestTable& table);

/// out[i] = round((x[i] − min) / scale) in [0, levels]; zeros where the scale is 0.
void affine_codes(const float* x, int n, Affine by, int levels, uint8_t* out);
/// out[i] = round(x[i] / d) in [low, high], minus low; the code of 0 where d is 0.
void scale_codes(const float* x, int n, float d, int low, int high, uint8_t* out);
/// out[i]: the code of the table's value nearest to x[i] / d.
void table_codes(const float* x, int n, float d, const NearestTable& table, uint8_t* out);

}  // namespace moe
