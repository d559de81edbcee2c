#pragma once
// How far a result may be from the double reference.

#include <cstdint>
#include <string_view>
#include <vector>

#include "moe/kernels/table.h"

namespace moe::testing {

/// Σ (a − b)² / Σ b²; 0 where both are zero.
inline double nmse(const std::vector<float>& a, const std::vector<double>& b) {
  double error = 0.0, power = 0.0;
  for (size_t i = 0; i < b.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    power += b[i] * b[i];
  }
  return error == 0.0 ? 0.0 : error / power;
}

/// Against the same weights, dequantised: what the activations' rounding may cost. One rounding to
/// bfloat16 is worth about 1.7e-6 and a block has three of them; int8 is promised 5e-4.
inline double product_bound(Dot dot) {
  switch (dot) {
    case Dot::kF32:
    case Dot::kBf16x2:
      return 1e-12;
    case Dot::kBf16:
      return 2e-5;
    default:
      return 5e-4;
  }
}

/// Attention against keys and values as they are kept. Tiles keep 16 bits of queries and weights
/// where keys are narrow: an error below 2^-17, twice.
inline double attention_bound(bool narrow) {
  const bool tiles = std::string_view(kernels().name).find("amx") != std::string_view::npos;
  return narrow && tiles ? 1e-10 : 1e-11;
}

}  // namespace moe::testing
