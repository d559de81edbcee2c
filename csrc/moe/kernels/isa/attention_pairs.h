#pragma once
// Attention in AMX tiles over keys and values of 16 bits (isa/attention_tiles.h): bfloat16 pairs.
//
// Definition    Products of bfloat16 numbers (isa/attention_operands.h) and float sums,
//               hi · hi + lo · hi + hi · lo. Queries and weights keep 16 bits, so a score and a
//               weight are off by 2^-17 of their terms at most.
// Cost          2 · rows · keys · (D + Dv) products of two parts, three for float16 keys.

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

/// One call's tiles over keys and values of 16 bits: see attend_tiles.
template <class T>
class PairTiles {
 public:
  using Number = T;
  static constexpr int64_t kRows = kTilePair;

  explicit PairTiles(const AttentionCall& call)
      : call_(call), steps_(query_steps(call.key_dim)), tiles_(call.out_stride / kLanes) {}

  int64_t parts() const {
    const int64_t groups = (call_.rows + kRows - 1) / kRows;
    return groups * (4 * steps_ + 2 * tiles_);
  }
  void open(const T* keys, const T* values, int count, const Ahead& ahead) {
    ahead_ = ahead;
    if (std::is_same_v<T, bf16> && count == kKeyBlock && call_.key_dim % kStepColumns == 0) {
      keys_ = {{reinterpret_cast<const std::byte*>(keys), nullptr}, call_.key_stride * 2};
    } else {
      lay_out_keys(keys, call_.key_stride, count, call_.key_dim,
                   reinterpret_cast<std::byte*>(call_.key_block), keys_);
    }
    values_ = values;
    count_ = count;
    damaged_ = 0;
    layout_ = layout();
    laid_out_ = false;
  }
  void attend(int64_t row, int height, int64_t block, int first, int last) {
    const std::byte* queries = reinterpret_cast<const std::byte*>(call_.queries) +
                               row / kTileHeight * 2 * steps_ * kStepBytes;
    const bool pair = height > kTileHeight;
    const auto multiply = [&](auto meanwhile) {
      if (pair) {
        multiply_keys<2, kParts>(keys_, queries, steps_, scores_, meanwhile);
      } else {
        multiply_keys<1, kParts>(keys_, queries, steps_, scores_, meanwhile);
      }
    };
    if (laid_out_) {
      multiply([&] { ahead_.request(); });
    } else {
      const int64_t calls = (pair ? 2 : 4) * kParts * steps_;
      const int pairs = static_cast<int>((kKeyBlock / 2 + calls - 1) / calls);
      multiply([&] {
        ahead_.request();
        layout_.advance(pairs);
      });
      finish_layout();
    }
    const int above = height < kTileHeight ? height : kTileHeight;
    const OutputRows to = {weights_,
                           w_,
                           {above, height - above},
                           call_.out + row * call_.out_stride,
                           call_.out_stride,
                           interleaved_tiles<T>(call_.value_dim)};
    const int row_tiles = pair ? 2 : 1;
    for (int tile = 0; tile < row_tiles; ++tile) {
      turn_scores(scores_ + tile * kKeyTiles * kTileWeights, to.height[tile], first, last,
                  w_[tile]);
      soften(call_, {row + tile * kTileHeight, to.height[tile]}, block, first, last, w_[tile]);
      lay_out_weights(w_[tile], to.height[tile], first, last, weights_[tile]);
    }
    const auto* values = reinterpret_cast<const std::byte*>(call_.value_block);
    if (pair) {
      multiply_values<2, kParts>(to, values, tiles_, ahead_);
    } else {
      multiply_values<1, kParts>(to, values, tiles_, ahead_);
    }
    for (int tile = 0; damaged_ != 0 && tile < row_tiles; ++tile) {
      add_damaged(damaged_, to, tile, values_, call_.value_stride, call_.value_dim);
    }
  }

 private:
  static constexpr int kParts = kNumberParts<T>;

  ValueLayout<T> layout() const {
    return {values_,         call_.value_stride, count_,
            call_.value_dim, damaged_,           reinterpret_cast<std::byte*>(call_.value_block)};
  }
  void finish_layout() {
    layout_.finish();
    laid_out_ = true;
    if (layout_.finite()) return;
    damaged_ = damaged_keys(values_, call_.value_stride, count_, call_.value_dim);
    layout_ = layout();
    layout_.finish();
  }

  const AttentionCall& call_;
  int64_t steps_, tiles_;
  Ahead ahead_{};
  KeyTiles keys_{};
  const T* values_ = nullptr;
  int count_ = 0;
  uint64_t damaged_ = 0;
  ValueLayout<T> layout_{nullptr, 0, kKeyBlock, 0, 0, nullptr};
  bool laid_out_ = false;
  TileWeights w_[2];
  WeightTiles weights_[2];
  alignas(64) float scores_[2 * kKeyTiles * kTileWeights];
};

}  // namespace moe::MOE_ISA
