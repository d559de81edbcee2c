#pragma once
// Products of attention's tiles over keys and values of 16 bits, and what is added to rows.
//
// Definition    hi · hi + lo · hi + hi · lo of bfloat16 numbers (isa/attention_operands.h) in one
//               float sum, over the columns of a key and over the keys of a wide block
// Cost          2 · rows · keys · (D + Dv) products of two parts, three for float16 keys.

#include "moe/kernels/isa/attention_weights.h"

namespace moe::MOE_ISA {

/// scores [tile][key][sixteen queries] = keys · queries, of one or two tiles of queries.
/// `meanwhile` is called between: what it does runs under the products.
template <int kTiles, int kParts, class F>
[[gnu::noinline]] static void multiply_keys(const KeyTiles& k, const std::byte* queries,
                                            int64_t steps, float* scores, F meanwhile) noexcept {
  const int64_t below = kTileHeight * k.stride, lo = steps * kStepBytes;
  if constexpr (kTiles == 1) {
    clear_sums<2>();
    // Four sums in turn: a product of the same sum would wait for the one before.
    for (int64_t s = 0; s < steps; ++s) {
      const std::byte* q = queries + s * kStepBytes;
      for (int part = 0; part < kParts; ++part) {
        const std::byte* at = k.part[part] + s * kLineBytes;
        for (int query_part = 0; query_part < (part == 0 ? 2 : 1); ++query_part) {
          MOE_TILE_LOAD(6, q + query_part * lo, kLineBytes);
          MOE_TILE_LOAD(4, at, k.stride);
          MOE_TILE_DOT(tdpbf16ps, 0, 4, 6);
          MOE_TILE_LOAD(5, at + below, k.stride);
          MOE_TILE_DOT(tdpbf16ps, 1, 5, 6);
          meanwhile();
          MOE_TILE_LOAD(4, at + 2 * below, k.stride);
          MOE_TILE_DOT(tdpbf16ps, 2, 4, 6);
          MOE_TILE_LOAD(5, at + 3 * below, k.stride);
          MOE_TILE_DOT(tdpbf16ps, 3, 5, 6);
        }
      }
    }
    MOE_TILE_STORE(0, scores, kLineBytes);
    MOE_TILE_STORE(1, scores + kTileWeights, kLineBytes);
    MOE_TILE_STORE(2, scores + 2 * kTileWeights, kLineBytes);
    MOE_TILE_STORE(3, scores + 3 * kTileWeights, kLineBytes);
  } else {
    const int64_t next = 2 * lo;
    for (int half = 0; half < kBlockHalves; ++half) {
      clear_sums<2>();
      for (int64_t s = 0; s < steps; ++s) {
        const std::byte* q = queries + s * kStepBytes;
        for (int part = 0; part < kParts; ++part) {
          const std::byte* at = k.part[part] + 2 * half * below + s * kLineBytes;
          MOE_TILE_LOAD(4, at, k.stride);
          meanwhile();
          MOE_TILE_LOAD(5, at + below, k.stride);
          for (int query_part = 0; query_part < (part == 0 ? 2 : 1); ++query_part) {
            MOE_TILE_LOAD(6, q + query_part * lo, kLineBytes);
            MOE_TILE_LOAD(7, q + query_part * lo + next, kLineBytes);
            MOE_TILE_DOT(tdpbf16ps, 0, 4, 6);
            MOE_TILE_DOT(tdpbf16ps, 1, 4, 7);
            MOE_TILE_DOT(tdpbf16ps, 2, 5, 6);
            MOE_TILE_DOT(tdpbf16ps, 3, 5, 7);
          }
        }
      }
      float* to = scores + 2 * half * kTileWeights;
      MOE_TILE_STORE(0, to, kLineBytes);
      MOE_TILE_STORE(1, to + kKeyTiles * kTileWeights, kLineBytes);
      MOE_TILE_STORE(2, to + kTileWeights, kLineBytes);
      MOE_TILE_STORE(3, to + (kKeyTiles + 1) * kTileWeights, kLineBytes);
    }
  }
}

/// Sums of values: a tile's rows against up to four column tiles.
struct ValueSums {
  float* out;
  int64_t stride;  // floats
  int columns;     // tiles
};
MOE_INLINE void load_values(const ValueSums& to) {
  const int64_t stride = to.stride * 4;
  MOE_TILE_LOAD(0, to.out, stride);
  if (to.columns > 1) MOE_TILE_LOAD(1, to.out + kLanes, stride);
  if (to.columns > 2) MOE_TILE_LOAD(2, to.out + 2 * kLanes, stride);
  if (to.columns > 3) MOE_TILE_LOAD(3, to.out + 3 * kLanes, stride);
}
MOE_INLINE void store_values(const ValueSums& to) {
  const int64_t stride = to.stride * 4;
  MOE_TILE_STORE(0, to.out, stride);
  if (to.columns > 1) MOE_TILE_STORE(1, to.out + kLanes, stride);
  if (to.columns > 2) MOE_TILE_STORE(2, to.out + 2 * kLanes, stride);
  if (to.columns > 3) MOE_TILE_STORE(3, to.out + 3 * kLanes, stride);
}

/// Values laid out: [part][step of 32 keys][column tile].
struct LaidOut {
  const std::byte* at;
  int64_t part_bytes, step_bytes;
};
/// Steps [first, last) of 32 keys of a tile's words times values laid out, added to the sums in
/// tiles 0 to 3. `meanwhile(step, i)` runs under the products, kValueCalls times a step.
template <int kParts>
inline constexpr int kValueCalls = 2 + 2 * kParts;
template <int kParts, class F>
MOE_INLINE void multiply_values(const float* words, int64_t word_stride, const LaidOut& values,
                                int first, int last, int columns, F meanwhile) {
  for (int step = first; step < last; ++step) {
    MOE_TILE_LOAD(4, words + step * kStepColumns, word_stride);
    MOE_TILE_LOAD(5, words + step * kStepColumns + kLanes, word_stride);
    for (int part = 0; part < kParts; ++part) {
      const std::byte* v = values.at + part * values.part_bytes + step * values.step_bytes;
      MOE_TILE_LOAD(6, v, kLineBytes);
      MOE_TILE_DOT(tdpbf16ps, 0, 4, 6);
      if (columns > 1) {
        MOE_TILE_LOAD(7, v + kStepBytes, kLineBytes);
        MOE_TILE_DOT(tdpbf16ps, 1, 4, 7);
      }
      meanwhile(step, 4 * part);
      if (part == 0) {
        MOE_TILE_DOT(tdpbf16ps, 0, 5, 6);
        if (columns > 1) MOE_TILE_DOT(tdpbf16ps, 1, 5, 7);
        meanwhile(step, 1);
      }
      if (columns > 2) {
        MOE_TILE_LOAD(6, v + 2 * kStepBytes, kLineBytes);
        MOE_TILE_DOT(tdpbf16ps, 2, 4, 6);
      }
      if (columns > 3) {
        MOE_TILE_LOAD(7, v + 3 * kStepBytes, kLineBytes);
        MOE_TILE_DOT(tdpbf16ps, 3, 4, 7);
      }
      meanwhile(step, 4 * part + 2 - part);
      if (part == 0) {
        if (columns > 2) MOE_TILE_DOT(tdpbf16ps, 2, 5, 6);
        if (columns > 3) MOE_TILE_DOT(tdpbf16ps, 3, 5, 7);
        meanwhile(step, 3);
      }
    }
  }
}

/// Sums of column tiles [0, tiles) of which pairs hold their columns by fours (kInterleaved), in
/// order, and back.
template <bool kBack>
MOE_INLINE void order_columns(float* row, int64_t tiles) {
  const __m512i first = kBack ? _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13)
                              : _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i second = kBack ? _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15)
                               : _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (int64_t c = 0; c < tiles; c += 2) {
    float* at = row + c * kLanes;
    const __m512i x = _mm512_loadu_si512(at), y = _mm512_loadu_si512(at + kLanes);
    _mm512_storeu_si512(at, _mm512_permutex2var_epi64(x, first, y));
    _mm512_storeu_si512(at + kLanes, _mm512_permutex2var_epi64(x, second, y));
  }
}

/// Earlier sums of a tile's rows, where their maxima have moved.
MOE_INLINE void shrink_rows(const float* shrink, int height, float* out, int64_t stride,
                            int64_t width) {
  for (int r = 0; r < height; ++r) {
    if (shrink[r] == 1.0f) continue;
    const F32x16 factor = set1(shrink[r]);
    for (int64_t c = 0; c < width; c += kLanes) {
      float* at = out + r * stride + c;
      store(at, mul(load(at), factor));
    }
  }
}

}  // namespace moe::MOE_ISA
