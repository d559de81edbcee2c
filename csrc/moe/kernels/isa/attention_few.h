#pragma once
// Products of attention's tiles (isa/attention_tiles.h) that keep the sums of hi and of lo apart.
//
// Definition    score = Σ hi · k + Σ lo · k, out = Σ hi · v + Σ lo · v (isa/attention_operands.h)
// Regularities  Up to eight rows in a call (a step of decoding): both parts in the sixteen columns,
//               then rows, of one tile. More (a prompt): a tile for each. The same sums, in the
//               same order.
// Cost          A product of tiles takes as long for one row as for sixteen: of few rows, stacking
//               halves the products.

#include "moe/kernels/isa/attention_weights.h"

namespace moe::MOE_ISA {

/// Rows of a step of decoding at most.
inline constexpr int kStackedRows = kTileHeight / 2;

template <int sum>
MOE_INLINE void clear_sum() {
  if constexpr (sum == 0) MOE_TILE_ZERO(0);
  if constexpr (sum == 1) MOE_TILE_ZERO(1);
  if constexpr (sum == 2) MOE_TILE_ZERO(2);
  if constexpr (sum == 3) MOE_TILE_ZERO(3);
}
template <int sum>
MOE_INLINE void store_sum(void* to) {
  if constexpr (sum == 0) MOE_TILE_STORE(0, to, kLineBytes);
  if constexpr (sum == 1) MOE_TILE_STORE(1, to, kLineBytes);
  if constexpr (sum == 2) MOE_TILE_STORE(2, to, kLineBytes);
  if constexpr (sum == 3) MOE_TILE_STORE(3, to, kLineBytes);
}

/// [keys][hi of eight queries, lo of the same] → scores[query][key], groups [first, last) of
/// sixteen keys. `combine` makes eight scores of a key's line.
template <class N, class F, class M>
MOE_INLINE void turn_stacked(const N* from, int height, int first, int last, TileWeights& w,
                             F combine, M meanwhile) {
  for (int g = first; g < last; ++g) {
    meanwhile();
    const N* keys = from + g * kTileWeights;
    __m512 a[8], b[8];
    MOE_UNROLL
    for (int i = 0; i < 8; ++i) {  // keys i and i + 4, then i + 8 and i + 12
      const N* key = keys + (i / 4 * 8 + i % 4) * kLanes;
      a[i] = _mm512_castps256_ps512(combine(key));
      a[i] = _mm512_insertf32x8(a[i], combine(key + 4 * kLanes), 1);
    }
    MOE_UNROLL
    for (int i = 0; i < 8; i += 2) {
      b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    MOE_UNROLL
    for (int i = 0; i < 8; i += 4) {
      a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
      a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
      a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
      a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    MOE_UNROLL
    for (int q = 0; q < 4; ++q) {
      store(w.scores[q] + g * kLanes, {_mm512_shuffle_f32x4(a[q], a[4 + q], 0x88)});
    }
    if (height <= 4) continue;
    MOE_UNROLL
    for (int q = 0; q < 4; ++q) {
      store(w.scores[4 + q] + g * kLanes, {_mm512_shuffle_f32x4(a[q], a[4 + q], 0xdd)});
    }
  }
}

/// sums [key tile][key][hi of eight queries, lo] = keys · queries. `meanwhile` runs under the
/// products.
template <Step kind, class F>
[[gnu::noinline]] static void multiply_keys_stacked(const KeyTiles& k, const std::byte* queries,
                                                    int64_t steps, void* sums,
                                                    F meanwhile) noexcept {
  const int64_t below = kTileHeight * k.stride;
  clear_sums<2>();
  for (int64_t s = 0; s < steps; ++s) {
    const std::byte* at = k.part[0] + s * kLineBytes;
    MOE_TILE_LOAD(6, queries + s * kStepBytes, kLineBytes);
    MOE_TILE_LOAD(4, at, k.stride);
    multiply_tiles<kind, 0, 4, 6>();
    meanwhile();
    MOE_TILE_LOAD(5, at + below, k.stride);
    multiply_tiles<kind, 1, 5, 6>();
    meanwhile();
    MOE_TILE_LOAD(4, at + 2 * below, k.stride);
    multiply_tiles<kind, 2, 4, 6>();
    meanwhile();
    MOE_TILE_LOAD(5, at + 3 * below, k.stride);
    multiply_tiles<kind, 3, 5, 6>();
    meanwhile();
  }
  auto* to = static_cast<std::byte*>(sums);
  MOE_TILE_STORE(0, to, kLineBytes);
  MOE_TILE_STORE(1, to + kStepBytes, kLineBytes);
  MOE_TILE_STORE(2, to + 2 * kStepBytes, kLineBytes);
  MOE_TILE_STORE(3, to + 3 * kStepBytes, kLineBytes);
}

/// Weights of a step of decoding as the first operand, for values that lie as a cache holds them:
/// [tile][group of sixteen keys][row][key], a key to a word. Its lower half multiplies even
/// columns, its upper half odd ones; the other half is 0. Up to four rows are in one tile, [hi, lo
/// of the even, hi, lo of the odd columns][four rows], more in two, [even, odd][hi, lo][eight
/// rows].
struct alignas(64) SpreadWeights {
  uint32_t word[2][kGroups][kTileHeight][kTileWords];
};
/// Where the rows of a part stand.
struct SpreadRows {
  int tiles, lo, odd_tile, odd_row;
};
MOE_INLINE SpreadRows spread_rows(int64_t rows) {
  return rows <= 4 ? SpreadRows{1, 4, 0, 8} : SpreadRows{2, 8, 1, 0};
}

/// `counted` of a row is not needed: what is masked weighs 0.
template <class M>
MOE_INLINE void spread_weights(const TileWeights& w, int height, int first, int last,
                               const SpreadRows& at, SpreadWeights& to, M meanwhile) {
  for (int r = 0; r < height; ++r) {
    meanwhile();
    MOE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      const F32x16 x = g < first || g >= last ? zero_f32() : load(w.scores[r] + g * kLanes);
      const WeightParts parts = weight_parts(x);
      _mm512_store_si512(to.word[0][g][r], _mm512_srli_epi32(parts.hi, 16));
      _mm512_store_si512(to.word[0][g][at.lo + r], _mm512_srli_epi32(parts.lo, 16));
      _mm512_store_si512(to.word[at.odd_tile][g][at.odd_row + r], cut(parts.hi));
      _mm512_store_si512(to.word[at.odd_tile][g][at.odd_row + at.lo + r], cut(parts.lo));
    }
  }
}

/// sums [thirty-two columns][tile][sixteen rows][sixteen columns] = weights · values as they lie,
/// `stride` bytes apart, groups of sixteen keys summed by twos as multiply_values_apart does.
/// Returns whether all are finite.
template <class F>
[[gnu::noinline]] static bool multiply_values_spread(const SpreadWeights& w, int weight_tiles,
                                                     const std::byte* values, int64_t stride,
                                                     int64_t columns, float* sums,
                                                     F meanwhile) noexcept {
  alignas(64) float group[2][kGroups][kTileWeights];  // added while the next ones are under way
  F32x16 zeros = zero_f32();                          // NaN where something was not finite
  const int64_t products = columns * weight_tiles;
  const auto add_groups = [&](int64_t i) MOE_INLINE_LAMBDA {
    const auto& g = group[i % 2];
    float* to = sums + i * kTileWeights;
    MOE_UNROLL
    for (int r = 0; r < kTileWeights; r += kLanes) {
      const F32x16 sum =
          add(add(load(g[0] + r), load(g[1] + r)), add(load(g[2] + r), load(g[3] + r)));
      zeros = fma(sum, zero_f32(), zeros);
      store(to + r, sum);
    }
  };
  const int64_t below = kTileHeight * stride;
  for (int64_t i = 0; i < products; ++i) {
    const auto& word = w.word[weight_tiles == 1 ? 0 : i % 2];
    const std::byte* at = values + i / weight_tiles * kLineBytes;
    clear_sums<2>();
    MOE_TILE_LOAD(4, word[0], kLineBytes);
    MOE_TILE_LOAD(6, at, stride);
    MOE_TILE_DOT(tdpbf16ps, 0, 4, 6);
    meanwhile();
    MOE_TILE_LOAD(5, word[1], kLineBytes);
    MOE_TILE_LOAD(7, at + below, stride);
    MOE_TILE_DOT(tdpbf16ps, 1, 5, 7);
    meanwhile();
    MOE_TILE_LOAD(4, word[2], kLineBytes);
    MOE_TILE_LOAD(6, at + 2 * below, stride);
    MOE_TILE_DOT(tdpbf16ps, 2, 4, 6);
    meanwhile();
    MOE_TILE_LOAD(5, word[3], kLineBytes);
    MOE_TILE_LOAD(7, at + 3 * below, stride);
    MOE_TILE_DOT(tdpbf16ps, 3, 5, 7);
    meanwhile();
    if (i > 0) add_groups(i - 1);
    auto& to = group[i % 2];
    MOE_TILE_STORE(0, to[0], kLineBytes);
    MOE_TILE_STORE(1, to[1], kLineBytes);
    MOE_TILE_STORE(2, to[2], kLineBytes);
    MOE_TILE_STORE(3, to[3], kLineBytes);
  }
  add_groups(products - 1);
  return to_bitmask(is_nan(zeros)) == 0;
}

inline constexpr int64_t kStackedTiles = 8;
/// Hands add(c, tiles, sums) the products of weights [hi of eight rows, lo] and values: up to
/// kStackedTiles column tiles [hi of eight rows, lo][sixteen columns] from c on.
template <Step kind, int kHalves, class N, class F, class A>
[[gnu::noinline]] static void multiply_values_stacked(const void* weights, const std::byte* values,
                                                      int64_t tiles, F meanwhile, A add) noexcept {
  const auto* w = static_cast<const std::byte*>(weights);
  alignas(64) N sums[kStackedTiles][kTileWeights];
  MOE_TILE_LOAD(4, w, kHalves * kLineBytes);
  if constexpr (kHalves == 2) MOE_TILE_LOAD(5, w + kLineBytes, kHalves * kLineBytes);
  const auto column = [&](auto number, int64_t c, N* to) MOE_INLINE_LAMBDA {
    constexpr int kSum = decltype(number)::kValue;
    clear_sum<kSum>();
    MOE_TILE_LOAD(6, values + c * kStepBytes, kLineBytes);
    multiply_tiles<kind, kSum, 4, 6>();
    if constexpr (kHalves == 2) {
      MOE_TILE_LOAD(7, values + (tiles + c) * kStepBytes, kLineBytes);
      multiply_tiles<kind, kSum, 5, 7>();
    }
    meanwhile();
    store_sum<kSum>(to);
  };
  for (int64_t first = 0; first < tiles; first += kStackedTiles) {
    const int64_t count = tiles - first < kStackedTiles ? tiles - first : kStackedTiles;
    int64_t c = 0;
    for (; c + 4 <= count; c += 4) {
      column(Constant<0>{}, first + c, sums[c]);
      column(Constant<1>{}, first + c + 1, sums[c + 1]);
      column(Constant<2>{}, first + c + 2, sums[c + 2]);
      column(Constant<3>{}, first + c + 3, sums[c + 3]);
    }
    for (; c < count; ++c) column(Constant<0>{}, first + c, sums[c]);
    add(first, count, sums);
  }
}

/// Sums of hi and of lo parts, as tiles store them.
template <class N>
struct alignas(64) PartSums {
  N hi[kTileWeights], lo[kTileWeights];
};

/// sums [key tile][key][sixteen queries] = keys · queries [hi, lo][step], of key tiles [first,
/// last).
template <Step kind, class N, class F>
[[gnu::noinline]] static void multiply_keys_apart(const KeyTiles& k, const std::byte* queries,
                                                  int64_t steps, PartSums<N>* sums, F meanwhile,
                                                  int first = 0, int last = kKeyTiles) noexcept {
  const int64_t below = kTileHeight * k.stride, lo = steps * kStepBytes;
  for (int tile = first; tile < last; tile += 2) {
    clear_sums<2>();
    for (int64_t s = 0; s < steps; ++s) {
      const std::byte* at = k.part[0] + tile * below + s * kLineBytes;
      meanwhile();
      MOE_TILE_LOAD(6, queries + s * kStepBytes, kLineBytes);
      MOE_TILE_LOAD(4, at, k.stride);
      multiply_tiles<kind, 0, 4, 6>();
      MOE_TILE_LOAD(7, queries + s * kStepBytes + lo, kLineBytes);
      multiply_tiles<kind, 1, 4, 7>();
      meanwhile();
      MOE_TILE_LOAD(5, at + below, k.stride);
      multiply_tiles<kind, 2, 5, 6>();
      multiply_tiles<kind, 3, 5, 7>();
    }
    MOE_TILE_STORE(0, sums[tile - first].hi, kLineBytes);
    MOE_TILE_STORE(1, sums[tile - first].lo, kLineBytes);
    MOE_TILE_STORE(2, sums[tile - first + 1].hi, kLineBytes);
    MOE_TILE_STORE(3, sums[tile - first + 1].lo, kLineBytes);
  }
}

/// Hands add(c, sums) the products of weights and values, [row][sixteen columns] of column tiles c
/// and c + 1, while the next ones are under way. Weights are rows of kRowBytes, each of kHalves
/// lines that lie kNextBytes apart.
template <Step kind, int kHalves, int64_t kRowBytes, int64_t kNextBytes, class N, class F, class A>
[[gnu::noinline]] static void multiply_values_apart(const void* hi, const void* lo,
                                                    const std::byte* values, int64_t tiles,
                                                    F meanwhile, A add) noexcept {
  const auto *above = static_cast<const std::byte*>(hi), *below = static_cast<const std::byte*>(lo);
  PartSums<N> sums[2][2];
  int turn = 0;
  for (int64_t c = 0; c < tiles; c += 2, turn ^= 1) {
    const std::byte* at = values + c * kStepBytes;
    clear_sums<2>();
    for (int half = 0; half < kHalves; ++half) {
      if (kHalves > 1 || c == 0) {
        MOE_TILE_LOAD(4, above + half * kNextBytes, kRowBytes);
        MOE_TILE_LOAD(5, below + half * kNextBytes, kRowBytes);
      }
      meanwhile();
      MOE_TILE_LOAD(6, at, kLineBytes);
      multiply_tiles<kind, 0, 4, 6>();
      multiply_tiles<kind, 1, 5, 6>();
      meanwhile();
      MOE_TILE_LOAD(7, c + 1 < tiles ? at + kStepBytes : at, kLineBytes);
      multiply_tiles<kind, 2, 4, 7>();
      multiply_tiles<kind, 3, 5, 7>();
      at += tiles * kStepBytes;
    }
    if (c > 0) add(c - 2, sums[turn ^ 1]);
    MOE_TILE_STORE(0, sums[turn][0].hi, kLineBytes);
    MOE_TILE_STORE(1, sums[turn][0].lo, kLineBytes);
    MOE_TILE_STORE(2, sums[turn][1].hi, kLineBytes);
    MOE_TILE_STORE(3, sums[turn][1].lo, kLineBytes);
  }
  add((tiles - 1) / 2 * 2, sums[turn ^ 1]);
}

}  // namespace moe::MOE_ISA
