#pragma once
// Attention in AMX tiles over keys and values of 16 bits (isa/attention_tiles.h): bfloat16 pairs.
//
// Definition    Products of bfloat16 numbers (isa/attention_operands.h) and float sums,
//               hi · hi + lo · hi + hi · lo. Queries and weights keep 16 bits, so a score and a
//               weight are off by 2^-17 of their terms at most.
// Regularities  A step of decoding and a prompt go the same way: reading takes longer than the
//               products of a tile that is not full. Values are laid out four column tiles at a
//               time for all rows, and stay in L1; sums are kept as tiles make them, to the end.
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
  static constexpr int kMostTiles = 8;
  static constexpr int64_t kRows = kMostTiles * kTileHeight;

  explicit PairTiles(const AttentionCall& call)
      : call_(call), steps_(query_steps(call.key_dim)), tiles_(call.out_width / kLanes) {}

  /// Calls for requests in a whole block.
  int64_t parts() const {
    const int64_t tiles = (call_.rows + kTileHeight - 1) / kTileHeight;
    const int64_t quads = (tiles_ + kQuad - 1) / kQuad;
    return (tiles + 1) / 2 * kHalves * 2 * kParts * steps_ + 2 * call_.rows +
           tiles * quads * kSteps * kValueCalls<kParts>;
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
  }
  void attend(int64_t row, int height, int64_t block, int first, int last) {
    const std::byte* queries = reinterpret_cast<const std::byte*>(call_.queries) +
                               row / kTileHeight * 2 * steps_ * kStepBytes;
    const int tiles = (height + kTileHeight - 1) / kTileHeight;
    shape_tiles(kTileHeight);
    for (int tile = 0; tile < tiles; tile += 2) {
      const int64_t bytes = 2 * steps_ * kStepBytes;
      if (tile + 1 < tiles) {
        score<2>(queries + tile * bytes, first, last, tile_of(row, height, tile + 1).height,
                 w_ + tile);
      } else {
        score<1>(queries + tile * bytes, first, last, tile_of(row, height, tile).height, w_ + tile);
      }
    }
    for (int tile = 0; tile < tiles; ++tile) {
      const RowTile rows = tile_of(row, height, tile);
      soften_wide(call_, rows, block, first, last, w_[tile], [&] { requests_.request(); });
      shrink_rows(w_[tile].shrink, rows.height, call_.out + rows.begin * call_.out_stride,
                  call_.out_stride, call_.out_width);
    }
    add_values(row, height, first / 2, (last + 1) / 2);
  }
  /// Sums' columns in their order. Whether all is done: where a sum is not finite, all is to be
  /// done once more, with an eye on which values are not.
  bool close() {
    F32x16 zeros = zero_f32();  // NaN where something was not finite
    for (int64_t r = 0; r < call_.rows; ++r) {
      float* out = call_.out + r * call_.out_stride;
      order_columns<false>(out, interleaved_tiles<T>(call_.value_dim));
      for (int64_t c = 0; c < call_.out_width; c += kLanes) {
        zeros = fma(load(out + c), zero_f32(), zeros);
      }
    }
    const bool done = careful_ || to_bitmask(is_nan(zeros)) == 0;
    careful_ = true;
    return done;
  }

 private:
  static constexpr int kParts = kNumberParts<T>;
  static constexpr int kHalves = kBlock / kKeyBlock, kSteps = kBlock / kStepColumns;
  static constexpr int kQuad = 4;  // column tiles that are summed at once
  static constexpr int64_t kQuadBytes = kQuad * kStepBytes;

  /// Of `height` rows from `row` on.
  static RowTile tile_of(int64_t row, int height, int tile) {
    const int left = height - tile * kTileHeight;
    return {row + tile * kTileHeight, left < kTileHeight ? left : kTileHeight};
  }

  /// Scores of one or two tiles of queries; `height` is that of the last.
  template <int kTiles>
  void score(const std::byte* queries, int first, int last, int height, WideWeights<kBlock>* w) {
    for (int half = first / kGroups; half * kGroups < last; ++half) {
      KeyTiles keys = keys_;
      for (const std::byte*& part : keys.part) part += half * kKeyBlock * keys.stride;
      multiply_keys<kTiles, kParts>(keys, queries, steps_, scores_, [&] { requests_.request(); });
      const int begin = first > half * kGroups ? first - half * kGroups : 0;
      const int end = last - half * kGroups < kGroups ? last - half * kGroups : kGroups;
      for (int tile = 0; tile < kTiles; ++tile) {
        turn_scores(scores_ + tile * kKeyTiles * kTileWeights,
                    tile + 1 < kTiles ? kTileHeight : height, begin, end,
                    w[tile].scores[0] + half * kKeyBlock, kBlock);
      }
    }
  }

  /// Weights times values, up to four column tiles at a time, steps [first, last).
  void add_values(int64_t row, int height, int first, int last) {
    if constexpr (kInterleaved<T>) {
      const bool whole = count_ == kBlock && call_.value_dim % kStepColumns == 0;
      if (whole && !careful_ && last - first > 1) return add_streamed(row, height, first, last);
    }
    using Layout = ValueLayout<T, kBlock>;
    for (int64_t c = 0; c < tiles_; c += kQuad) {
      const int64_t left = call_.value_dim - c * kLanes;
      const int64_t dim = left < kQuad * kLanes ? left : kQuad * kLanes;
      const T* values = values_ + c * kLanes;
      KeySet<kBlock> damaged;
      if (careful_) damaged = damaged_keys<kBlock>(values, call_.value_stride, count_, dim);
      Layout(values, call_.value_stride, count_, dim, damaged, block()).finish();
      const int64_t columns = (dim + kLanes - 1) / kLanes;
      add_quad({block(), Layout::part_bytes(columns), columns * kStepBytes}, row, height, c, first,
               last, [](int, int, int) {});
      for (int tile = 0; !damaged.empty() && tile * kTileHeight < height; ++tile) {
        const RowTile rows = tile_of(row, height, tile);
        add_apart(damaged, w_[tile], rows.height, values, dim, sums(rows, c));
      }
    }
  }
  /// Values are laid out while those before are multiplied: where the last tile has multiplied a
  /// step's, the next column tiles' take their place.
  void add_streamed(int64_t row, int height, int first, int last) {
    const int last_tile = (height - 1) / kTileHeight;
    const auto lay_out = [&](int64_t c, int step, int quarter) MOE_INLINE_LAMBDA {
      if (c >= tiles_) return;
      lay_out_quarter(values_ + step * kStepColumns * call_.value_stride + c * kLanes,
                      call_.value_stride, columns_from(c), quarter, block() + step * kQuadBytes);
    };
    for (int step = first; step + 1 < last; ++step) {
      for (int quarter = 0; quarter < kQuarters; ++quarter) lay_out(0, step, quarter);
    }
    for (int64_t c = 0; c < tiles_; c += kQuad) {
      add_quad({block(), 0, kQuadBytes}, row, height, c, first, last,
               [&](int tile, int step, int i) MOE_INLINE_LAMBDA {
                 if (step == first && tile == 0) lay_out(c, last - 1, i);
                 if (step > first && tile == last_tile) lay_out(c + kQuad, step - 1, i);
               });
    }
  }
  template <class F>
  void add_quad(const LaidOut& values, int64_t row, int height, int64_t c, int first, int last,
                F meanwhile) {
    for (int tile = 0; tile * kTileHeight < height; ++tile) {
      const RowTile rows = tile_of(row, height, tile);
      const ValueSums to = sums(rows, c);
      // Where the next sums are added, a row with each call.
      const bool ends = (tile + 1) * kTileHeight >= height;
      const float* next = ends ? call_.out + row * call_.out_stride + (c + kQuad) * kLanes
                               : to.out + kTileHeight * to.stride;
      shape_tiles(rows.height);
      load_values(to);
      multiply_values<kParts>(w_[tile].scores[0], w_->kStride, values, first, last, to.columns,
                              [&](int step, int i) MOE_INLINE_LAMBDA {
                                requests_.request();
                                for (int j = 0; j < to.columns; ++j) prefetch(next + j * kLanes);
                                next += to.stride;
                                meanwhile(tile, step, i);
                              });
      store_values(to);
    }
  }
  ValueSums sums(RowTile rows, int64_t c) const {
    return {call_.out + rows.begin * call_.out_stride + c * kLanes, call_.out_stride,
            columns_from(c)};
  }
  int columns_from(int64_t c) const {
    return static_cast<int>(tiles_ - c < kQuad ? tiles_ - c : kQuad);
  }
  std::byte* block() const { return reinterpret_cast<std::byte*>(call_.value_block); }
  /// Values that are not finite: 0 times them would be NaN in rows that do not count their keys.
  void add_apart(const KeySet<kBlock>& damaged, const WideWeights<kBlock>& w, int height,
                 const T* values, int64_t dim, const ValueSums& to) const {
    for (int r = 0; r < height; ++r) {
      float* out = to.out + r * to.stride;
      order_columns<false>(out, interleaved_tiles<T>(dim));
      add_damaged(damaged, w.counted[r], values, call_.value_stride, dim, out,
                  [&](int key) { return weight_of(w, r, key); });
      order_columns<true>(out, interleaved_tiles<T>(dim));
    }
  }
  void shape_tiles(int height) {
    if (height != shaped_) configure_tiles(height, height, kTileWords);
    shaped_ = height;
  }

  const AttentionCall& call_;
  int64_t steps_, tiles_;
  int shaped_ = kTileHeight;
  Requests requests_{};
  KeyTiles keys_{};
  const T* values_ = nullptr;
  int count_ = 0;
  bool careful_ = false;  // values may be damaged
  WideWeights<kBlock> w_[kMostTiles];
  alignas(64) float scores_[2 * kKeyTiles * kTileWeights];
};

}  // namespace moe::MOE_ISA
