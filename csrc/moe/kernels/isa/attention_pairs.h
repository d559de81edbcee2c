#pragma once
// Attention in AMX tiles over keys and values of 16 bits (isa/attention_tiles.h): bfloat16 pairs.
//
// Definition    Products of bfloat16 numbers (isa/attention_operands.h) and float sums,
//               hi · hi + lo · hi + hi · lo. Queries and weights keep 16 bits, so a score and a
//               weight are off by 2^-17 of their terms at most.
// Cost          2 · rows · keys · (D + Dv) products of two parts, three for float16 keys.

#include "moe/kernels/isa/attention_pair_products.h"

namespace moe::MOE_ISA {

/// Queries of up to eight rows as [step][sixteen words][hi of eight queries, lo]; of more as
/// pack_query_tiles lays them out.
static void pack_few_queries(const QueryRows& q, int64_t stride, float* packed) noexcept {
  if (q.rows > kStackedRows) return pack_query_tiles(q, stride, packed);
  auto* out = reinterpret_cast<std::byte*>(packed);
  for (int64_t s = 0; s < query_steps(q.head_dim + q.tail_dim); ++s) {
    __m512i parts[16];
    for (int64_t r = 0; r < kStackedRows; ++r) {
      round_query(q, r, s, parts[r], parts[kStackedRows + r]);
    }
    transpose_lanes(parts);
    for (int64_t word = 0; word < kTileWords; ++word) {
      _mm512_storeu_si512(out + s * kStepBytes + word * kLineBytes, parts[word]);
    }
  }
}

/// One call's tiles over keys and values of 16 bits: see attend_tiles. kFew: of few heads to a kv
/// head, their sums apart (attention_few.h).
template <class T, bool kFew = false>
class PairTiles {
 public:
  using Number = T;
  static constexpr int64_t kRows = kFew ? kTileHeight : kTilePair;
  static_assert(!kFew || kNumberParts<T> == 1);

  explicit PairTiles(const AttentionCall& call)
      : call_(call), steps_(query_steps(call.key_dim)), tiles_(call.out_stride / kLanes) {}

  int64_t parts() const {
    const int64_t groups = (call_.rows + kRows - 1) / kRows;
    const int64_t rows = call_.rows < kRows ? call_.rows : kRows;
    if (kFew && call_.rows <= kStackedRows) {
      return kKeyTiles * steps_ + kGroups + 4 * rows +
             kGroups * query_steps(call_.value_dim) * spread_rows(rows).tiles;
    }
    return groups * (4 * steps_ + 2 * tiles_ + 2 * rows);
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
    if constexpr (kFew) {
      if (call_.rows <= kStackedRows) {
        attend_stacked(queries, height, block, first, last);
      } else {
        attend_apart(queries, row, height, block, first, last);
      }
      return;
    }
    const bool pair = height > kTileHeight;
    with_layout((pair ? 2 : 4) * kParts * steps_, [&](auto meanwhile) {
      if (pair) {
        multiply_keys<2, kParts>(keys_, queries, steps_, scores_, meanwhile);
      } else {
        multiply_keys<1, kParts>(keys_, queries, steps_, scores_, meanwhile);
      }
    });
    const int above = height < kTileHeight ? height : kTileHeight;
    const OutputRows to = output(row, above, height - above);
    const int row_tiles = pair ? 2 : 1;
    for (int tile = 0; tile < row_tiles; ++tile) {
      turn_scores(scores_ + tile * kKeyTiles * kTileWeights, to.height[tile], first, last,
                  w_[tile]);
      soften(call_, {row + tile * kTileHeight, to.height[tile]}, block, first, last, w_[tile],
             [&] { ahead_.request(); });
      lay_out_weights(w_[tile], to.height[tile], first, last, weights_[tile].part[0][0],
                      weights_[tile].part[1][0]);
    }
    if (pair) {
      multiply_values<2, kParts>(to, laid_out_values(), tiles_, ahead_);
    } else {
      multiply_values<1, kParts>(to, laid_out_values(), tiles_, ahead_);
    }
    for (int tile = 0; damaged_ != 0 && tile < row_tiles; ++tile) {
      add_damaged(damaged_, to, tile, values_, call_.value_stride, call_.value_dim);
    }
  }

 private:
  static constexpr int kParts = kNumberParts<T>;
  /// Keys of a word: those whose sums a step of decoding adds.
  static constexpr int kGap = kFew ? kTileHeight : 1;

  /// A step of decoding: nothing is laid out.
  void attend_stacked(const std::byte* queries, int height, int64_t block, int first, int last) {
    const auto request = [&] { ahead_.request(); };
    multiply_keys_stacked<Step::kPairs>(keys_, queries, steps_, scores_, request);
    turn_stacked(
        scores_, height, first, last, w_[0],
        [](const float* key) MOE_INLINE_LAMBDA {
          return _mm256_add_ps(_mm256_load_ps(key), _mm256_load_ps(key + kStackedRows));
        },
        request);
    soften(call_, {0, height}, block, first, last, w_[0], request);
    const SpreadRows rows = spread_rows(height);
    spread_weights(w_[0], height, first, last, rows, spread_, request);
    const int64_t columns = query_steps(call_.value_dim), row_bytes = columns * kLineBytes;
    // The scratch of values takes sums of 64 bytes a column, and a copy of them, 128 at most.
    auto* sums = call_.value_block;
    auto* copy = reinterpret_cast<std::byte*>(sums + 2 * columns * kTileWeights);
    const auto multiply = [&](const std::byte* values, int64_t stride) {
      return multiply_values_spread(spread_, rows.tiles, values, stride, columns, sums, request);
    };
    const auto copied = [&] {
      copy_values(copy, row_bytes);
      return multiply(copy, row_bytes);
    };
    const bool in_place = count_ == kKeyBlock && call_.value_dim % kStepColumns == 0;
    const bool finite =
        in_place ? multiply(reinterpret_cast<const std::byte*>(values_), call_.value_stride * 2)
                 : copied();
    if (!finite) {
      damaged_ = damaged_keys(values_, call_.value_stride, count_, call_.value_dim);
      if (damaged_ != 0) copied();
    }
    const OutputRows to = output(0, height, 0);
    add_spread(to, rows, columns, sums, request);
    if (damaged_ != 0) {
      add_damaged(damaged_, to, 0, values_, call_.value_stride, call_.value_dim);
    }
  }
  /// A block's values in whole steps, zeros behind their columns, for the keys behind `count` and
  /// for those to be left out.
  void copy_values(std::byte* to, int64_t row_bytes) const {
    const auto bytes = static_cast<size_t>(call_.value_dim) * 2;
    for (int j = 0; j < kKeyBlock; ++j) {
      std::byte* row = to + j * row_bytes;
      std::memset(row, 0, static_cast<size_t>(row_bytes));
      if (j < count_ && (damaged_ >> j & 1) == 0) {
        std::memcpy(row, values_ + j * call_.value_stride, bytes);
      }
    }
  }

  void attend_apart(const std::byte* queries, int64_t row, int height, int64_t block, int first,
                    int last) {
    with_layout(kKeyTiles * steps_, [&](auto meanwhile) {
      multiply_keys_apart<Step::kPairs>(keys_, queries, steps_, sums_, meanwhile);
    });
    turn_lines(first, last, w_[0], [&](int g, int i) MOE_INLINE_LAMBDA {
      return add(load(sums_[g].hi + i * kLanes), load(sums_[g].lo + i * kLanes));
    });
    soften(call_, {row, height}, block, first, last, w_[0], [&] { ahead_.request(); });
    const WeightTiles& weights = weights_[0];
    lay_out_weights<kGap>(w_[0], height, first, last, weights_[0].part[0][0],
                          weights_[0].part[1][0]);
    const OutputRows to = output(row, height, 0);
    multiply_values_apart<Step::kPairs, kBlockHalves, float>(
        weights.part[0], weights.part[1], laid_out_values(), tiles_, [&] { ahead_.request(); },
        [&](int64_t c, const PartSums<float>(&sums)[2]) {
          add_parts(to, c, c + 1 < tiles_, sums[0].hi, sums[0].lo, sums[1].hi, sums[1].lo);
        });
    if (damaged_ != 0) {
      add_damaged(damaged_, to, 0, values_, call_.value_stride, call_.value_dim);
    }
  }

  /// Multiplies with the values laid out meanwhile, if they are not yet.
  template <class F>
  void with_layout(int64_t calls, F multiply) {
    if (laid_out_) {
      multiply([&] { ahead_.request(); });
      return;
    }
    const int pairs = static_cast<int>((kKeyBlock / 2 + calls - 1) / calls);
    multiply([&] {
      ahead_.request();
      layout_.advance(pairs);
    });
    layout_.finish();
    laid_out_ = true;
    if (layout_.finite()) return;
    damaged_ = damaged_keys(values_, call_.value_stride, count_, call_.value_dim);
    layout_ = layout();
    layout_.finish();
  }
  ValueLayout<T, kGap> layout() const {
    return {values_,         call_.value_stride, count_,
            call_.value_dim, damaged_,           reinterpret_cast<std::byte*>(call_.value_block)};
  }
  const std::byte* laid_out_values() const {
    return reinterpret_cast<const std::byte*>(call_.value_block);
  }
  OutputRows output(int64_t row, int above, int below) const {
    return {weights_,         w_,
            {above, below},   call_.out + row * call_.out_stride,
            call_.out_stride, interleaved_tiles<T>(call_.value_dim)};
  }

  const AttentionCall& call_;
  int64_t steps_, tiles_;
  Ahead ahead_{};
  KeyTiles keys_{};
  const T* values_ = nullptr;
  int count_ = 0;
  uint64_t damaged_ = 0;
  ValueLayout<T, kGap> layout_{nullptr, 0, kKeyBlock, 0, 0, nullptr};
  bool laid_out_ = false;
  TileWeights w_[kFew ? 1 : 2];
  WeightTiles weights_[kFew ? 1 : 2] = {};
  alignas(64) float scores_[2 * kKeyTiles * kTileWeights];
  PartSums<float> sums_[kFew ? kKeyTiles : 1];
  SpreadWeights spread_ = {};
};

}  // namespace moe::MOE_ISA
