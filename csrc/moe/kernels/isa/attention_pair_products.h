#pragma once
// Products of attention's tiles over keys and values of 16 bits, and what is added to rows.
//
// Definition    hi · hi + lo · hi + hi · lo of bfloat16 numbers (isa/attention_operands.h) in one
//               float sum; attention_few.h's sums apart
// Cost          2 · rows · keys · (D + Dv) products of two parts, three for float16 keys.

#include "moe/kernels/isa/attention_few.h"

namespace moe::MOE_ISA {

/// scores [tile][key][sixteen queries] = keys · queries, of one or two tiles of queries.
/// `meanwhile` is called between: what it does runs under the products.
template <int kTiles, int kParts, class F>
[[gnu::noinline]] static void multiply_keys(const KeyTiles& k, const std::byte* queries,
                                            int64_t steps, float* scores, F meanwhile) noexcept {
  const int64_t below = kTileHeight * k.stride, lo = steps * kStepBytes;
  if constexpr (kTiles == 1) {
    clear_sums<2>();
    for (int64_t s = 0; s < steps; ++s) {
      const std::byte* q = queries + s * kStepBytes;
      for (int part = 0; part < kParts; ++part) {
        const std::byte* at = k.part[part] + s * kLineBytes;
        MOE_TILE_LOAD(6, q, kLineBytes);
        if (part == 0) MOE_TILE_LOAD(7, q + lo, kLineBytes);
        meanwhile();
        MOE_TILE_LOAD(4, at, k.stride);
        MOE_TILE_DOT(tdpbf16ps, 0, 4, 6);
        if (part == 0) MOE_TILE_DOT(tdpbf16ps, 0, 4, 7);
        meanwhile();
        MOE_TILE_LOAD(5, at + below, k.stride);
        MOE_TILE_DOT(tdpbf16ps, 1, 5, 6);
        if (part == 0) MOE_TILE_DOT(tdpbf16ps, 1, 5, 7);
        meanwhile();
        MOE_TILE_LOAD(4, at + 2 * below, k.stride);
        MOE_TILE_DOT(tdpbf16ps, 2, 4, 6);
        if (part == 0) MOE_TILE_DOT(tdpbf16ps, 2, 4, 7);
        meanwhile();
        MOE_TILE_LOAD(5, at + 3 * below, k.stride);
        MOE_TILE_DOT(tdpbf16ps, 3, 5, 6);
        if (part == 0) MOE_TILE_DOT(tdpbf16ps, 3, 5, 7);
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
struct OutputRows {
  const WeightTiles* weights;  // [tiles]
  const TileWeights* rows;     // [tiles]
  int height[2];
  float* out;
  int64_t stride;
  int64_t interleaved;  // column tiles
};

/// out[r] = out[r] · shrink[r] + sums[r], over some column tiles of `tiles`.
template <int kColumnTiles>
MOE_INLINE void add_sums(const OutputRows& to, int tile, const float* sums, int64_t first,
                         int64_t tiles) {
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (int r = 0; r < to.height[tile]; ++r) {
    const F32x16 shrink = set1(to.rows[tile].shrink[r]);
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

template <int kTiles, int kParts>
[[gnu::noinline]] static void multiply_values(const OutputRows& to, const std::byte* values,
                                              int64_t tiles, Ahead& ahead) noexcept {
  constexpr int64_t kRowBytes = kKeyBlock * 2;
  constexpr int kColumnTiles = 4 / kTiles;
  // Sums are added while the next columns' are under way.
  alignas(64) float both[2][kTiles][kTileHeight * kColumnTiles * kLanes];
  constexpr int64_t kSumBytes = kColumnTiles * kLanes * 4;
  const int64_t half_bytes = tiles * kStepBytes;
  for (int64_t c = 0; c < tiles; c += kColumnTiles) {
    auto& sums = both[c / kColumnTiles % 2];
    int64_t column[kColumnTiles];  // bytes; columns that do not exist repeat the last one
    for (int i = 0; i < kColumnTiles; ++i) {
      column[i] = (c + i < tiles ? c + i : tiles - 1) * kStepBytes;
    }
    clear_sums<2>();
    MOE_UNROLL
    for (int half = 0; half < kBlockHalves; ++half) {
      for (int part = 0; part < kParts; ++part) {
        const std::byte* v = values + (part * kBlockHalves + half) * half_bytes;
        ahead.request();
        if constexpr (kTiles == 1) {
          const WeightTiles& w = to.weights[0];
          MOE_TILE_LOAD(4, w.part[0][0] + half * kStepColumns, kRowBytes);
          if (part == 0) MOE_TILE_LOAD(5, w.part[1][0] + half * kStepColumns, kRowBytes);
          MOE_TILE_LOAD(6, v + column[0], kLineBytes);
          MOE_TILE_DOT(tdpbf16ps, 0, 4, 6);
          if (part == 0) MOE_TILE_DOT(tdpbf16ps, 0, 5, 6);
          ahead.request();
          MOE_TILE_LOAD(7, v + column[1], kLineBytes);
          MOE_TILE_DOT(tdpbf16ps, 1, 4, 7);
          if (part == 0) MOE_TILE_DOT(tdpbf16ps, 1, 5, 7);
          ahead.request();
          MOE_TILE_LOAD(6, v + column[2], kLineBytes);
          MOE_TILE_DOT(tdpbf16ps, 2, 4, 6);
          if (part == 0) MOE_TILE_DOT(tdpbf16ps, 2, 5, 6);
          ahead.request();
          MOE_TILE_LOAD(7, v + column[3], kLineBytes);
          MOE_TILE_DOT(tdpbf16ps, 3, 4, 7);
          if (part == 0) MOE_TILE_DOT(tdpbf16ps, 3, 5, 7);
        } else {
          MOE_TILE_LOAD(6, v + column[0], kLineBytes);
          MOE_TILE_LOAD(7, v + column[1], kLineBytes);
          for (int weight_part = 0; weight_part < (part == 0 ? 2 : 1); ++weight_part) {
            MOE_TILE_LOAD(4, to.weights[0].part[weight_part][0] + half * kStepColumns, kRowBytes);
            MOE_TILE_LOAD(5, to.weights[1].part[weight_part][0] + half * kStepColumns, kRowBytes);
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
  const int64_t last = (tiles - 1) / kColumnTiles;
  for (int t = 0; t < kTiles; ++t) {
    add_sums<kColumnTiles>(to, t, both[last % 2][t], last * kColumnTiles, tiles);
  }
}

/// out[r] = out[r] · shrink[r] + hi[r] + lo[r], over column tile c and, of `two`, the next.
MOE_INLINE void add_parts(const OutputRows& to, int64_t c, bool two, const float* hi,
                          const float* lo, const float* next_hi, const float* next_lo) {
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (int r = 0; r < to.height[0]; ++r) {
    const F32x16 shrink = set1(to.rows[0].shrink[r]);
    float* at = to.out + r * to.stride + c * kLanes;
    const int64_t line = r * kLanes;
    F32x16 a = add(load(hi + line), load(lo + line));
    if (!two) {
      store(at, fma(load(at), shrink, a));
      continue;
    }
    F32x16 b = add(load(next_hi + line), load(next_lo + line));
    if (c < to.interleaved) {
      const __m512i x = bits(a).v, y = bits(b).v;
      a = from_bits({_mm512_permutex2var_epi64(x, low, y)});
      b = from_bits({_mm512_permutex2var_epi64(x, high, y)});
    }
    store(at, fma(load(at), shrink, a));
    store(at + kLanes, fma(load(at + kLanes), shrink, b));
  }
}

/// out[r] = out[r] · shrink[r] + hi[r] + lo[r], of sums as multiply_values_spread leaves them.
template <class M>
MOE_INLINE void add_spread(const OutputRows& to, const SpreadRows& at, int64_t columns,
                           const float* sums, M meanwhile) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  for (int r = 0; r < to.height[0]; ++r) {
    meanwhile();
    const F32x16 shrink = set1(to.rows[0].shrink[r]);
    for (int64_t c = 0; c < columns; ++c) {
      const float* even = sums + c * at.tiles * kTileWeights + r * kLanes;
      const float* odd = even + at.odd_tile * kTileWeights + at.odd_row * kLanes;
      const F32x16 a = add(load(even), load(even + at.lo * kLanes));
      const F32x16 b = add(load(odd), load(odd + at.lo * kLanes));
      float* out = to.out + r * to.stride + c * kStepColumns;
      store(out, fma(load(out), shrink, {_mm512_permutex2var_ps(a.v, low, b.v)}));
      if (c * kStepColumns + kLanes >= to.stride) break;
      store(out + kLanes,
            fma(load(out + kLanes), shrink, {_mm512_permutex2var_ps(a.v, high, b.v)}));
    }
  }
}

/// The keys of a block with a number that is not finite.
template <class T>
static uint64_t damaged_keys(const T* values, int64_t stride, int count, int64_t dim) noexcept {
  uint64_t damaged = 0;
  for (int j = 0; j < count; ++j) {
    F32x16 zeros = zero_f32();
    for (int64_t c = 0; c < dim; c += kLanes) {
      zeros = fma(load_padded(values + j * stride + c, dim - c), zero_f32(), zeros);
    }
    if (to_bitmask(is_nan(zeros)) != 0) damaged |= uint64_t{1} << j;
  }
  return damaged;
}

/// Adds what tiles leave out: 0 times a damaged value would be NaN in rows that do not count it.
template <class T>
static void add_damaged(uint64_t damaged, const OutputRows& to, int tile, const T* values,
                        int64_t stride, int64_t dim) noexcept {
  for (int r = 0; r < to.height[tile]; ++r) {
    float* out = to.out + (tile * kTileHeight + r) * to.stride;
    uint64_t rest = damaged & to.rows[tile].counted[r];
    for (; rest != 0; rest &= rest - 1) {
      const int j = __builtin_ctzll(rest);
      const F32x16 weight = set1(to.rows[tile].scores[r][j]);
      for (int64_t c = 0; c < dim; c += kLanes) {
        store(out + c, fma(weight, load_padded(values + j * stride + c, dim - c), load(out + c)));
      }
    }
  }
}

}  // namespace moe::MOE_ISA
