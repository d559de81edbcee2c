#pragma once
// Attention in AMX tiles over keys and values of 16 bits (isa/attention_tiles.h): bfloat16 pairs.
//
// Definition    Products of bfloat16 numbers (isa/attention_operands.h) and float sums,
//               hi · hi + lo · hi + hi · lo. Queries and weights keep 16 bits, so a score and a
//               weight are off by 2^-17 of their terms at most.
// Regularities  A step of decoding and a prompt go the same way: reading takes longer than the
//               products of a tile that is not full.
// Cost          2 · rows · keys · (D + Dv) products of two parts, three for float16 keys.

#include "moe/kernels/isa/attention_pair_products.h"
#include "moe/kernels/isa/attention_requests.h"

namespace moe::MOE_ISA {

/// One call's tiles over keys and values of 16 bits: see attend_tiles.
template <class T>
class PairTiles {
 public:
  using Number = T;
  static constexpr int kBlock = kWideBlock;
  static constexpr int64_t kRows = kTilePair;

  explicit PairTiles(const AttentionCall& call)
      : call_(call), steps_(query_steps(call.key_dim)), tiles_(call.out_width / kLanes) {}

  /// Calls for requests in a whole block.
  int64_t parts() const {
    const int64_t rest = call_.rows % kRows;
    const auto calls = [&](int64_t rows, int64_t tiles) {
      return kHalves * 2 * kParts * steps_ + 2 * rows +
             (tiles_ * tiles + 3) / 4 * kWideSteps * kParts;
    };
    return call_.rows / kRows * calls(kRows, 2) +
           (rest > 0 ? calls(rest, rest > kTileHeight ? 2 : 1) : 0);
  }
  void open(const T* keys, const T* values, int count, const Requests& requests) {
    requests_ = requests;
    if (std::is_same_v<T, bf16> && count == kBlock && call_.key_dim % kStepColumns == 0) {
      keys_ = {{reinterpret_cast<const std::byte*>(keys), nullptr}, call_.key_stride * 2};
    } else {
      const int rows = (count + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
      lay_out_keys(keys, call_.key_stride, count, call_.key_dim, rows,
                   reinterpret_cast<std::byte*>(call_.key_block), keys_);
    }
    values_ = values;
    count_ = count;
    damaged_ = {};
    layout_ = layout();
    laid_out_ = false;
  }
  void attend(int64_t row, int height, int64_t block, int first, int last) {
    if (height > kTileHeight) {
      attend_rows<2>(row, height, block, first, last);
    } else {
      attend_rows<1>(row, height, block, first, last);
    }
  }

 private:
  static constexpr int kParts = kNumberParts<T>;
  static constexpr int kHalves = kBlock / kKeyBlock;
  static constexpr int kWideSteps = kBlock / kStepColumns;

  template <int kTiles>
  void attend_rows(int64_t row, int height, int64_t block, int first, int last) {
    const std::byte* queries = reinterpret_cast<const std::byte*>(call_.queries) +
                               row / kTileHeight * 2 * steps_ * kStepBytes;
    const int above = height < kTileHeight ? height : kTileHeight;
    const OutputRows<kBlock> to = {w_,
                                   {above, height - above},
                                   call_.out + row * call_.out_stride,
                                   call_.out_stride,
                                   interleaved_tiles<T>(call_.value_dim)};
    const auto request = [&] { requests_.request(); };
    const int from = first / kGroups, until = (last + kGroups - 1) / kGroups;
    const int64_t calls = (until - from) * 2 * kParts * steps_;
    const int pairs =
        laid_out_ ? 0 : static_cast<int>((ValueLayout<T, kBlock>::kPairs + calls - 1) / calls);
    for (int half = from; half < until; ++half) {
      KeyTiles keys = keys_;
      for (const std::byte*& part : keys.part) part += half * kKeyBlock * keys.stride;
      if (laid_out_) {
        multiply_keys<kTiles, kParts>(keys, queries, steps_, scores_, request);
      } else {
        multiply_keys<kTiles, kParts>(keys, queries, steps_, scores_, [&] {
          requests_.request();
          layout_.advance(pairs);
        });
      }
      const int begin = first > half * kGroups ? first - half * kGroups : 0;
      const int end = last - half * kGroups < kGroups ? last - half * kGroups : kGroups;
      for (int tile = 0; tile < kTiles; ++tile) {
        turn_scores(scores_ + tile * kKeyTiles * kTileWeights, to.height[tile], begin, end,
                    w_[tile].scores[0] + half * kKeyBlock, kBlock);
      }
    }
    if (!laid_out_) finish_layout();
    for (int tile = 0; tile < kTiles; ++tile) {
      soften_wide(call_, {row + tile * kTileHeight, to.height[tile]}, block, first, last, w_[tile],
                  request);
    }
    multiply_values<kTiles, kParts>(to, reinterpret_cast<const std::byte*>(call_.value_block),
                                    tiles_, ValueLayout<T, kBlock>::part_bytes(tiles_), first / 2,
                                    (last + 1) / 2, request);
    if (damaged_.empty()) return;
    for (int r = 0; r < height; ++r) {
      const WideWeights<kBlock>& w = w_[r / kTileHeight];
      const int at = r % kTileHeight;
      add_damaged(damaged_, w.counted[at], values_, call_.value_stride, call_.value_dim,
                  to.out + r * to.stride, [&](int key) { return weight_of(w, at, key); });
    }
  }

  void finish_layout() {
    layout_.finish();
    laid_out_ = true;
    if (layout_.finite()) return;
    damaged_ = damaged_keys<kBlock>(values_, call_.value_stride, count_, call_.value_dim);
    layout_ = layout();
    layout_.finish();
  }
  ValueLayout<T, kBlock> layout() const {
    return {values_,         call_.value_stride, count_,
            call_.value_dim, damaged_,           reinterpret_cast<std::byte*>(call_.value_block)};
  }

  const AttentionCall& call_;
  int64_t steps_, tiles_;
  Requests requests_{};
  KeyTiles keys_{};
  const T* values_ = nullptr;
  int count_ = 0;
  KeySet<kBlock> damaged_;
  ValueLayout<T, kBlock> layout_{nullptr, 0, kBlock, 0, {}, nullptr};
  bool laid_out_ = false;
  WideWeights<kBlock> w_[2];
  alignas(64) float scores_[2 * kKeyTiles * kTileWeights];
};

}  // namespace moe::MOE_ISA
