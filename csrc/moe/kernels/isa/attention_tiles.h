#pragma once
// Attention in AMX tiles (isa/amx.h), for keys and values of 16 and 8 bits.
//
// Definition    attention.h's, with products of bfloat16 numbers (isa/attention_operands.h) and
//               float sums: hi · hi + lo · hi + hi · lo. Queries and weights keep 16 bits, so a
//               score and a weight are off by 2^-17 of their terms at most.
// Regularities  A tile's element is the sum over its own row and column, in one order, whatever
// lies
//               beside it: tiles multiply every number of rows.
// Cost          A block of keys and values is read and laid out once for all rows of a call, the
//               values under the products with the keys; the next block is requested meanwhile.

#include "moe/kernels/isa/attention_operands.h"

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

/// [key][sixteen queries] → scores[query][key], groups [first, last) of sixteen keys.
MOE_INLINE void turn_scores(const float* from, int height, int first, int last, TileWeights& w) {
  for (int g = first; g < last; ++g) {
    const float* keys = from + g * kTileWeights;
    if (height <= 4) {
      __m512 a[4];  // keys i, 4 + i, 8 + i, 12 + i
      MOE_UNROLL
      for (int i = 0; i < 4; ++i) {
        a[i] = _mm512_castps128_ps512(_mm_loadu_ps(keys + i * 16));
        a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(keys + (4 + i) * 16), 1);
        a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(keys + (8 + i) * 16), 2);
        a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(keys + (12 + i) * 16), 3);
      }
      const __m512 ab = _mm512_unpacklo_ps(a[0], a[1]), cd = _mm512_unpacklo_ps(a[2], a[3]);
      const __m512 ab_high = _mm512_unpackhi_ps(a[0], a[1]);
      const __m512 cd_high = _mm512_unpackhi_ps(a[2], a[3]);
      store(w.scores[0] + g * kLanes, {_mm512_shuffle_ps(ab, cd, 0x44)});
      store(w.scores[1] + g * kLanes, {_mm512_shuffle_ps(ab, cd, 0xee)});
      store(w.scores[2] + g * kLanes, {_mm512_shuffle_ps(ab_high, cd_high, 0x44)});
      store(w.scores[3] + g * kLanes, {_mm512_shuffle_ps(ab_high, cd_high, 0xee)});
      continue;
    }
    __m512i a[16];
    MOE_UNROLL
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(keys + i * 16);
    transpose_lanes(a);
    MOE_UNROLL
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(w.scores[i] + g * kLanes, a[i]);
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

/// Requests for the block that is read next, in as many parts as the tiles have steps.
template <class T>
MOE_INLINE Ahead next_block(const AttentionCall& call, const T* keys, const T* values) {
  const bool together = values >= keys && values < keys + call.key_dim;  // latent attention
  const int64_t bytes = kKeyBlock * call.key_stride * static_cast<int64_t>(sizeof(T));
  const auto* first = reinterpret_cast<const std::byte*>(keys);
  const auto* second = reinterpret_cast<const std::byte*>(values);
  if (together) second = first + bytes / 2;
  const int64_t groups = (call.rows + kTilePair - 1) / kTilePair;
  const int64_t steps = groups * (4 * query_steps(call.key_dim) + 2 * (call.out_stride / kLanes));
  return Ahead{}.over({first, second}, together ? bytes / 2 : bytes, steps);
}

template <class T>
static void attend_tiles(const AttentionCall& call) noexcept {
  constexpr int kParts = kNumberParts<T>;
  clear_rows(call);
  configure_tiles(kTileHeight, kTileHeight, kTileWords);
  const int64_t steps = query_steps(call.key_dim), tiles = call.out_stride / kLanes;
  const int64_t query_tile = 2 * steps * kStepBytes;
  auto* key_block = reinterpret_cast<std::byte*>(call.key_block);
  auto* value_block = reinterpret_cast<std::byte*>(call.value_block);
  TileWeights w[2];
  WeightTiles weights[2];
  alignas(64) float scores[2 * kKeyTiles * kTileWeights];
  const KeyRange all = seen(call, 0, call.rows, call.begin, call.end);
  for (int64_t block = all.begin / kKeyBlock * kKeyBlock; block < all.end; block += kKeyBlock) {
    const int64_t block_end = block + kKeyBlock < call.end ? block + kKeyBlock : call.end;
    const KeyRange used = seen(call, 0, call.rows, block, block_end);
    if (used.begin >= used.end) continue;
    const auto* keys = static_cast<const T*>(call.keys) + block * call.key_stride;
    const auto* values = static_cast<const T*>(call.values) + block * call.value_stride;
    const int count = static_cast<int>(block_end - block);
    KeyTiles k;
    if (std::is_same_v<T, bf16> && count == kKeyBlock && call.key_dim % kStepColumns == 0) {
      k = {{reinterpret_cast<const std::byte*>(keys), nullptr}, call.key_stride * 2};
    } else {
      lay_out_keys(keys, call.key_stride, count, call.key_dim, key_block, k);
    }
    Ahead ahead = next_block(call, keys + kKeyBlock * call.key_stride,
                             values + kKeyBlock * call.value_stride);
    ValueLayout<T> layout(values, call.value_stride, count, call.value_dim, 0, value_block);
    bool laid_out = false;
    uint64_t damaged = 0;
    for (int64_t row = 0; row < call.rows; row += kTilePair) {
      const int64_t height = call.rows - row < kTilePair ? call.rows - row : kTilePair;
      const KeyRange rows_used = seen(call, row, row + height, used.begin, used.end);
      if (rows_used.begin >= rows_used.end) continue;
      const int first = static_cast<int>((rows_used.begin - block) / kLanes);
      const int last = static_cast<int>((rows_used.end - block + kLanes - 1) / kLanes);
      const std::byte* queries =
          reinterpret_cast<const std::byte*>(call.queries) + row / kTileHeight * query_tile;
      const int above = static_cast<int>(height < kTileHeight ? height : kTileHeight);
      const OutputRows to = {weights,
                             w,
                             {above, static_cast<int>(height) - above},
                             call.out + row * call.out_stride,
                             call.out_stride,
                             interleaved_tiles<T>(call.value_dim)};
      const bool pair = height > kTileHeight;
      const auto multiply = [&](auto meanwhile) {
        if (pair) {
          multiply_keys<2, kParts>(k, queries, steps, scores, meanwhile);
        } else {
          multiply_keys<1, kParts>(k, queries, steps, scores, meanwhile);
        }
      };
      if (laid_out) {
        multiply([&] { ahead.request(); });
      } else {
        const int64_t calls = (pair ? 2 : 4) * kParts * steps;
        const int pairs = static_cast<int>((kKeyBlock / 2 + calls - 1) / calls);
        multiply([&] {
          ahead.request();
          layout.advance(pairs);
        });
        layout.finish();
        laid_out = true;
        if (!layout.finite()) {
          damaged = damaged_keys(values, call.value_stride, count, call.value_dim);
          ValueLayout<T>(values, call.value_stride, count, call.value_dim, damaged, value_block)
              .finish();
        }
      }
      for (int tile = 0; tile < (pair ? 2 : 1); ++tile) {
        turn_scores(scores + tile * kKeyTiles * kTileWeights, to.height[tile], first, last,
                    w[tile]);
        soften(call, {row + tile * kTileHeight, to.height[tile]}, block, first, last, w[tile]);
        lay_out_weights(w[tile], to.height[tile], first, last, weights[tile]);
      }
      if (pair) {
        multiply_values<2, kParts>(to, value_block, tiles, ahead);
      } else {
        multiply_values<1, kParts>(to, value_block, tiles, ahead);
      }
      for (int tile = 0; damaged != 0 && tile < (pair ? 2 : 1); ++tile) {
        add_damaged(damaged, to, tile, values, call.value_stride, call.value_dim);
      }
    }
  }
  release_tiles();
  sum_rows(call);
}

}  // namespace moe::MOE_ISA
