#include "moe/ops/rope.h"

#include <algorithm>
#include <cstring>

#include "moe/base/buffer.h"
#include "moe/base/check.h"
#include "moe/base/parallel.h"
#include "moe/kernels/table.h"

namespace moe {

namespace {

/// Tokens per task, so that a task touches some 64 thousand floats (10 µs).
int64_t grain_of(int64_t floats_per_token) {
  return std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, floats_per_token));
}

}  // namespace

void rope_angles(const int64_t* positions, int64_t tokens, const float* frequencies, int64_t half,
                 float factor, float* cos, float* sin) {
  const RopeKernels& kernel = *kernels().rope;
  const auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernel.angles(static_cast<float>(positions[t]), frequencies, half, factor, cos + t * half,
                    sin + t * half);
    }
  };
  parallel_for(tokens, grain_of(half * 8), piece);
}

void rope(const float* x, int64_t x_stride, int64_t tokens, int64_t heads, const RopeLayout& layout,
          const float* cos, const float* sin, float* out, int64_t out_stride) {
  const int64_t first = layout.first, half = layout.half, end_of_pairs = first + 2 * half;
  MOE_CHECK(first >= 0 && half >= 0 && end_of_pairs <= layout.head_dim, "[rope] ", 2 * half,
            " rotated dimensions from ", first, " on; a head has ", layout.head_dim);
  const RopeKernels& kernel = *kernels().rope;
  const auto piece = [&](int64_t begin, int64_t end) {
    // Interleaved: every cosine twice, every sine twice with the first one negated.
    float* twice = scratch_of<float>(Scratch::kRouter, static_cast<size_t>(4 * half));
    for (int64_t t = begin; t < end; ++t) {
      const float *c = cos + t * half, *s = sin + t * half;
      if (layout.interleaved) {
        for (int64_t i = 0; i < half; ++i) {
          twice[2 * i] = twice[2 * i + 1] = c[i];
          twice[2 * half + 2 * i] = -s[i];
          twice[2 * half + 2 * i + 1] = s[i];
        }
      }
      for (int64_t h = 0; h < heads; ++h) {
        const float* from = x + t * x_stride + h * layout.head_dim;
        float* to = out + t * out_stride + h * layout.head_dim;
        if (layout.interleaved) {
          kernel.rotate_pairs(from + first, twice, twice + 2 * half, 2 * half, to + first);
        } else {
          kernel.rotate_halves(from + first, c, s, half, to + first);
        }
        if (from == to) continue;
        std::memcpy(to, from, static_cast<size_t>(first) * 4);
        std::memcpy(to + end_of_pairs, from + end_of_pairs,
                    static_cast<size_t>(layout.head_dim - end_of_pairs) * 4);
      }
    }
  };
  parallel_for(tokens, grain_of(heads * layout.head_dim), piece);
}

}  // namespace moe
