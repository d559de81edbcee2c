#pragma once
// Sums of values by a softmax's weights, in floats.
//
// Definition    out[r] = out[r] · shrink[r] + Σ_j w[r][j] · v[j], over j in order
// Regularities  Value columns lie along the lanes.

#include "moe/kernels/isa/key_scores.h"

namespace moe::MOE_ISA {

/// Calls f with `height`, 1 to R, as a compile-time constant.
template <int R, class F>
MOE_INLINE void with_height(int height, F f) {
  if constexpr (R > 0) {
    if (height == R) {
      f(Constant<R>{});
    } else {
      with_height<R - 1>(height, f);
    }
  }
}

/// out[r][0 .. 16 P) = out[r] · shrink[r] + Σ_{j in [begin, end)} w[r][j] · values[j][0 .. 16 P)
template <int R, int P, class T>
[[gnu::noinline]] static void weigh_tile(const float* w, const T* values, int64_t stride, int begin,
                                         int end, const float* shrink, float* out, int64_t c,
                                         int64_t out_stride, const NextRows& next) noexcept {
  values += c;
  out += c;
  F32x16 sum[R][P];
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    MOE_UNROLL
    for (int p = 0; p < P; ++p) {
      sum[r][p] = mul(load(out + r * out_stride + p * kLanes), set1(shrink[r]));
    }
  }
  for (int j = begin; j < end; ++j) {
    F32x16 value[P];
    MOE_UNROLL
    for (int p = 0; p < P; ++p) {
      value[p] = load(values + j * stride + p * kLanes);
    }
    next.request<T>(j, c, P);
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      const F32x16 weight = set1(w[r * kKeyBlock + j]);
      MOE_UNROLL
      for (int p = 0; p < P; ++p) sum[r][p] = fma(weight, value[p], sum[r][p]);
    }
  }
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    MOE_UNROLL
    for (int p = 0; p < P; ++p) store(out + r * out_stride + p * kLanes, sum[r][p]);
  }
}

/// weigh_tile for one row that leaves keys out of the middle: only those of `keys` are touched.
template <class T>
static void weigh_keys(uint64_t keys, const float* w, const T* values, int64_t stride,
                       int64_t width, float shrink, float* out) noexcept {
  for (int64_t c = 0; c < width; c += kLanes) {
    F32x16 sum = mul(load(out + c), set1(shrink));
    for (uint64_t rest = keys; rest != 0; rest &= rest - 1) {
      const int j = __builtin_ctzll(rest);
      sum = fma(set1(w[j]), load(values + j * stride + c), sum);
    }
    store(out + c, sum);
  }
}

template <class T>
static bool all_finite(const T* values, int64_t stride, int count, int64_t width) noexcept {
  F32x16 zeros = zero_f32();  // NaN where something was not finite
  for (int j = 0; j < count; ++j) {
    for (int64_t c = 0; c < width; c += kLanes) {
      zeros = fma(load_padded(values + j * stride + c, width - c), zero_f32(), zeros);
    }
  }
  return to_bitmask(is_nan(zeros)) == 0;
}

/// How many vectors of value columns a tile of R rows takes at once: what the registers hold.
template <int R>
constexpr int wide_columns() {
  return kTilePanels == 2 ? (R <= 2 ? 8 : R <= 5 ? 4 : 2) : (kTileRows > 2 && R <= 2 ? 2 : 1);
}

/// weigh_tile over columns [c, width), P vectors at a time, then fewer.
template <int R, int P, class T>
MOE_INLINE void weigh_columns(const float* w, const T* values, int64_t stride, int begin, int end,
                              const float* shrink, float* out, int64_t c, int64_t width,
                              int64_t out_stride, const NextRows& next) {
  for (; c + P * kLanes <= width; c += P * kLanes) {
    weigh_tile<R, P>(w, values, stride, begin, end, shrink, out, c, out_stride, next);
  }
  if constexpr (P > 1) {
    weigh_columns<R, P / 2>(w, values, stride, begin, end, shrink, out, c, width, out_stride, next);
  }
}

/// Adds a block's weighted values to a tile's output rows. `finite` says so of all the values.
template <class T>
MOE_INLINE void weigh(const AttentionCall& call, RowTile tile, const TileWeights& w,
                      const T* values, int64_t stride, bool finite, const NextRows& next = {}) {
  uint64_t any = 0, every = ~uint64_t{0};
  for (int r = 0; r < tile.height; ++r) {
    any |= w.counted[r];
    every &= w.counted[r];
  }
  if (any == 0) return;
  float* out = call.out + tile.begin * call.out_stride;
  const int begin = __builtin_ctzll(any), end = kKeyBlock - __builtin_clzll(any);
  const uint64_t whole = (~uint64_t{0} >> (kKeyBlock - (end - begin))) << begin;
  // A weight of 0 times a value that is not finite would be NaN: such a block goes row by row.
  if (!finite && every != whole) {
    for (int r = 0; r < tile.height; ++r) {
      weigh_keys(w.counted[r], w.scores[r], values, stride, call.out_width, w.shrink[r],
                 out + r * call.out_stride);
    }
  } else {
    with_height<kTileRows>(tile.height, [&](auto number) MOE_INLINE_LAMBDA {
      constexpr int R = decltype(number)::kValue;
      weigh_columns<R, wide_columns<R>()>(w.scores[0], values, stride, begin, end, w.shrink, out, 0,
                                          call.out_width, call.out_stride, next);
    });
  }
}

}  // namespace moe::MOE_ISA
