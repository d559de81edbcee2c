#pragma once
// Scores of query rows against keys, in floats.
//
// Definition    s[r][j] = q[r] · k[j], over d lane by lane and then over the lanes
// Cost          2 · rows · keys · D operations; a key is converted once for four rows.

#include "moe/kernels/isa/softmax_rows.h"
#include "moe/simd/lane_sums.h"

namespace moe::MOE_ISA {

/// Rows as floats of whole vectors, zeros behind.
template <class T>
static void widen_rows(const T* rows, int64_t stride, int count, int64_t width, float* out,
                       int64_t out_stride) noexcept {
  for (int j = 0; j < count; ++j) {
    for (int64_t c = 0; c < width; c += kLanes) {
      store(out + j * out_stride + c, load_padded(rows + j * stride + c, width - c));
    }
  }
}

/// Rows that are read after those which are being multiplied, requested line by line meanwhile:
/// requests that come all at once wait for one another, and multiplying for them.
struct NextRows {
  const std::byte* at = nullptr;
  int64_t stride = 0, row_bytes = 0;  // 0: none

  /// `vectors` vectors of T's of a row, from column c on.
  template <class T>
  [[gnu::always_inline]] inline void request(int64_t row, int64_t c, int vectors = 1) const {
    constexpr int64_t kVectorBytes = kLanes * static_cast<int64_t>(sizeof(T));
    for (int v = 0; v < vectors; ++v) {
      const int64_t byte = c * static_cast<int64_t>(sizeof(T)) + v * kVectorBytes;
      if (byte % kCacheLine == 0 && byte < row_bytes) prefetch_l2(at + row * stride + byte);
    }
  }

 private:
  static constexpr int64_t kCacheLine = 64;
};

// Scores: kSumVectors dot products at a time, those of R rows with kSumVectors / R keys.
inline constexpr int kDotRows = kSumVectors == 16 ? 4 : kSumVectors == 4 ? 2 : 1;
inline constexpr int kDotKeys = kSumVectors / kDotRows;

/// s[r][j] = q[r] · keys[j] for `keys` from `first` to `last`, in steps that may pass `last` but
/// stay in the block; the rows from `count` on do not exist. dim is a multiple of the lanes.
template <int R, bool kAhead, class T>
[[gnu::noinline]] static void score_rows(const float* q, const T* keys, int64_t stride, int count,
                                         int first, int last, int64_t dim, float* s,
                                         const NextRows& next) noexcept {
  constexpr int kKeys = kSumVectors / R;
  constexpr int kStep = kKeys < kDotKeys ? kKeys : kDotKeys;
  for (int j = first; j < last; j += kKeys) {
    F32x16 sum[kSumVectors];
    MOE_UNROLL
    for (int step = 0; step < kKeys; step += kStep) {
      const T* key[kStep];
      MOE_UNROLL
      for (int i = 0; i < kStep; ++i) {
        const int row = j + step + i < count ? j + step + i : count - 1;
        key[i] = keys + row * stride;
      }
      F32x16 part[R][kStep];
      MOE_UNROLL
      for (int r = 0; r < R; ++r) {
        MOE_UNROLL
        for (int i = 0; i < kStep; ++i) part[r][i] = zero_f32();
      }
      for (int64_t d = 0; d < dim; d += kLanes) {
        F32x16 value[kStep];
        MOE_UNROLL
        for (int i = 0; i < kStep; ++i) {
          value[i] = load(key[i] + d);
          if constexpr (kAhead) next.request<T>(j + step + i, d);
        }
        MOE_UNROLL
        for (int r = 0; r < R; ++r) {
          const F32x16 query = load(q + r * dim + d);
          MOE_UNROLL
          for (int i = 0; i < kStep; ++i) part[r][i] = fma(query, value[i], part[r][i]);
        }
      }
      MOE_UNROLL
      for (int r = 0; r < R; ++r) {
        MOE_UNROLL
        for (int i = 0; i < kStep; ++i) sum[r * kKeys + step + i] = part[r][i];
      }
    }
    float scores[kSumVectors];
    sum_lanes(sum, scores);
    MOE_UNROLL
    for (int r = 0; r < R; ++r) std::memcpy(s + r * kKeyBlock + j, scores + r * kKeys, 4 * kKeys);
  }
}

/// score_rows for a tile of any height. A few keys at a time for all rows: those are then in L1.
template <bool kAhead, class T>
MOE_INLINE void score(const float* q, const T* keys, int64_t stride, int count, int first, int last,
                      int64_t dim, int height, float* s, const NextRows& next = {}) {
  const int step = height % kDotRows == 0 ? kLanes / 2 : kLanes;
  for (int j = first; j < last; j += step) {
    int r = 0;
    const auto rows = [&](auto number) MOE_INLINE_LAMBDA {
      constexpr int R = decltype(number)::kValue;
      if constexpr (kAhead) {
        if (r == 0 && height >= R) {
          score_rows<R, true>(q, keys, stride, count, j, j + step, dim, s, next);
          r = R;
        }
      }
      for (; r + R <= height; r += R) {
        score_rows<R, false>(q + r * dim, keys, stride, count, j, j + step, dim, s + r * kKeyBlock,
                             next);
      }
    };
    if constexpr (kDotRows >= 4) rows(Constant<4>{});
    if constexpr (kDotRows >= 2) rows(Constant<2>{});
    rows(Constant<1>{});
  }
}

}  // namespace moe::MOE_ISA
