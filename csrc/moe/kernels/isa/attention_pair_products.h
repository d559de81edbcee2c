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

/// Rows of one or two tiles: weights · values is added to out · shrink.
template <int kBlock>
struct OutputRows {
  const WideWeights<kBlock>* weights;  // [tiles]
  int height[2];
  float* out;
  int64_t stride;
  int64_t interleaved;  // column tiles
};

/// out[r] = out[r] · shrink[r] + sums[r], over some column tiles of `tiles`.
template <int kColumnTiles, int kBlock>
MOE_INLINE void add_sums(const OutputRows<kBlock>& to, int tile, const float* sums, int64_t first,
                         int64_t tiles) {
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (int r = 0; r < to.height[tile]; ++r) {
    const F32x16 shrink = set1(to.weights[tile].shrink[r]);
    float* out = to.out + (tile * kTileHeight + r) * to.stride + first * kLanes;
    MOE_UNROLL
    for (int c = 0; c < kColumnTiles; c += 2) {
      if (first + c >= tiles) break;
      F32x16 a = load(sums + (r * kColumnTiles + c) * kLanes);
      F32x16 b = load(sums + (r * kColumnTiles + c + 1) * kLanes);
      if (first + c < to.interleaved) {
        const __m512i x = bits(a).v, y = bits(b).v;
        a = from_bits({_mm512_permutex2var_epi64(x, low, y)});
        b = from_bits({_mm512_permutex2var_epi64(x, high, y)});
      }
      float* at = out + c * kLanes;
      store(at, fma(load(at), shrink, a));
      if (first + c + 1 < tiles) store(at + kLanes, fma(load(at + kLanes), shrink, b));
    }
  }
}

/// Steps [first, last) of 32 keys of weights times values laid out. `meanwhile` runs under the
/// products.
template <int kTiles, int kParts, int kBlock, class F>
[[gnu::noinline]] static void multiply_values(const OutputRows<kBlock>& to, const std::byte* values,
                                              int64_t tiles, int64_t part_bytes, int first,
                                              int last, F meanwhile) noexcept {
  constexpr int kColumnTiles = 4 / kTiles;
  constexpr int64_t kWeightStride = WideWeights<kBlock>::kStride;
  // Sums are added while the next columns' are under way.
  alignas(64) float both[2][kTiles][kTileHeight * kColumnTiles * kLanes];
  constexpr int64_t kSumBytes = kColumnTiles * kLanes * 4;
  for (int64_t c = 0; c < tiles; c += kColumnTiles) {
    auto& sums = both[c / kColumnTiles % 2];
    int64_t column[kColumnTiles];  // bytes; columns that do not exist repeat the last one
    for (int i = 0; i < kColumnTiles; ++i) {
      column[i] = (c + i < tiles ? c + i : tiles - 1) * kStepBytes;
    }
    clear_sums<2>();
    for (int step = first; step < last; ++step) {
      for (int part = 0; part < kParts; ++part) {
        const std::byte* v = values + part * part_bytes + step * tiles * kStepBytes;
        const float* w = to.weights[0].scores[0] + step * kStepColumns;
        meanwhile();
        if constexpr (kTiles == 1) {
          for (int weight_part = 0; weight_part < (part == 0 ? 2 : 1); ++weight_part) {
            MOE_TILE_LOAD(4, w + weight_part * kLanes, kWeightStride);
            MOE_TILE_LOAD(6, v + column[0], kLineBytes);
            MOE_TILE_DOT(tdpbf16ps, 0, 4, 6);
            MOE_TILE_LOAD(7, v + column[1], kLineBytes);
            MOE_TILE_DOT(tdpbf16ps, 1, 4, 7);
            MOE_TILE_LOAD(6, v + column[2], kLineBytes);
            MOE_TILE_DOT(tdpbf16ps, 2, 4, 6);
            MOE_TILE_LOAD(7, v + column[3], kLineBytes);
            MOE_TILE_DOT(tdpbf16ps, 3, 4, 7);
          }
        } else {
          const float* below = to.weights[1].scores[0] + step * kStepColumns;
          MOE_TILE_LOAD(6, v + column[0], kLineBytes);
          MOE_TILE_LOAD(7, v + column[1], kLineBytes);
          for (int weight_part = 0; weight_part < (part == 0 ? 2 : 1); ++weight_part) {
            MOE_TILE_LOAD(4, w + weight_part * kLanes, kWeightStride);
            MOE_TILE_LOAD(5, below + weight_part * kLanes, kWeightStride);
            MOE_TILE_DOT(tdpbf16ps, 0, 4, 6);
            MOE_TILE_DOT(tdpbf16ps, 1, 4, 7);
            MOE_TILE_DOT(tdpbf16ps, 2, 5, 6);
            MOE_TILE_DOT(tdpbf16ps, 3, 5, 7);
          }
        }
      }
    }
    if (c > 0) {
      for (int t = 0; t < kTiles; ++t) {
        add_sums<kColumnTiles>(to, t, both[(c / kColumnTiles + 1) % 2][t], c - kColumnTiles, tiles);
      }
    }
    MOE_TILE_STORE(0, sums[0], kSumBytes);
    MOE_TILE_STORE(1, sums[0] + kLanes, kSumBytes);
    if constexpr (kTiles == 1) {
      MOE_TILE_STORE(2, sums[0] + 2 * kLanes, kSumBytes);
      MOE_TILE_STORE(3, sums[0] + 3 * kLanes, kSumBytes);
    } else {
      MOE_TILE_STORE(2, sums[1], kSumBytes);
      MOE_TILE_STORE(3, sums[1] + kLanes, kSumBytes);
    }
  }
  const int64_t last_columns = (tiles - 1) / kColumnTiles;
  for (int t = 0; t < kTiles; ++t) {
    add_sums<kColumnTiles>(to, t, both[last_columns % 2][t], last_columns * kColumnTiles, tiles);
  }
}

}  // namespace moe::MOE_ISA
