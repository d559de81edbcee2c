#pragma once
// Rotary position embedding (Su et al. 2021).

#include <cstdint>

namespace moe {

/// cos and sin [tokens, half] of position · frequency, times `factor` (yarn's attention factor).
/// Every layer and head of a forward pass shares them. Parallel over tokens.
void rope_angles(const int64_t* positions, int64_t tokens, const float* frequencies, int64_t half,
                 float factor, float* cos, float* sin);

/// Which numbers of a head rotate, and how they pair up.
struct RopeLayout {
  int64_t head_dim = 0;
  int64_t first = 0;         // the rotated ones start here: 0, or head_dim - 2·half
  int64_t half = 0;          // pairs
  bool interleaved = false;  // pairs (2i, 2i + 1), which stay in place, instead of (i, half + i)
};

/// x and out [tokens, heads, head_dim], heads contiguous, tokens `x_stride` and `out_stride` floats
/// apart; out may be x. What does not rotate is copied. cos, sin as rope_angles() writes them.
/// Throws ValueError if the layout does not fit into a head. Parallel over tokens.
void rope(const float* x, int64_t x_stride, int64_t tokens, int64_t heads, const RopeLayout& layout,
          const float* cos, const float* sin, float* out, int64_t out_stride);

}  // namespace moe
