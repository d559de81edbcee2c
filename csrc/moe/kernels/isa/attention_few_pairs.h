#pragma once
// Attention in AMX tiles over bfloat16 keys and values of few heads (isa/attention_tiles.h).
//
// Definition    attention_pairs.h's, the sums of hi and of lo apart (attention_few.h)
// Regularities  Up to eight rows in a call, a step of decoding, read values as they lie; more, a
//               prompt's, share values laid out. The same sums, in the same order.

#include "moe/kernels/isa/attention_few.h"
#include "moe/kernels/isa/attention_requests.h"

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

/// A tile's rows: weights · values is added to out · shrink.
struct FewRows {
  const float* shrink;
  int height;
  float* out;
  int64_t stride, width;
  int64_t interleaved;  // column tiles
};

/// out[r] = out[r] · shrink[r] + hi[r] + lo[r], over column tile c and, of `two`, the next.
MOE_INLINE void add_parts(const FewRows& to, int64_t c, bool two, const float* hi, const float* lo,
                          const float* next_hi, const float* next_lo) {
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (int r = 0; r < to.height; ++r) {
    const F32x16 shrink = set1(to.shrink[r]);
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
MOE_INLINE void add_spread(const FewRows& to, const SpreadRows& at, int64_t columns,
                           const float* sums, M meanwhile) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  for (int r = 0; r < to.height; ++r) {
    meanwhile();
    const F32x16 shrink = set1(to.shrink[r]);
    for (int64_t c = 0; c < columns; ++c) {
      const float* even = sums + c * at.tiles * kTileWeights + r * kLanes;
      const float* odd = even + at.odd_tile * kTileWeights + at.odd_row * kLanes;
      const F32x16 a = add(load(even), load(even + at.lo * kLanes));
      const F32x16 b = add(load(odd), load(odd + at.lo * kLanes));
      float* out = to.out + r * to.stride + c * kStepColumns;
      store(out, fma(load(out), shrink, {_mm512_permutex2var_ps(a.v, low, b.v)}));
      if (c * kStepColumns + kLanes >= to.width) break;
      store(out + kLanes,
            fma(load(out + kLanes), shrink, {_mm512_permutex2var_ps(a.v, high, b.v)}));
    }
  }
}

/// One call's tiles over bfloat16 keys and values of few heads: see attend_tiles.
class FewPairTiles {
 public:
  using Number = bf16;
  static constexpr int kBlock = kKeyBlock;
  static constexpr int64_t kRows = kTileHeight;

  explicit FewPairTiles(const AttentionCall& call)
      : call_(call), steps_(query_steps(call.key_dim)), tiles_(call.out_width / kLanes) {}

  int64_t parts() const {
    const int64_t groups = (call_.rows + kRows - 1) / kRows;
    const int64_t rows = call_.rows < kRows ? call_.rows : kRows;
    if (call_.rows <= kStackedRows) {
      return kKeyTiles * steps_ + kGroups + 4 * rows +
             kGroups * query_steps(call_.value_dim) * spread_rows(rows).tiles;
    }
    return groups * (kKeyTiles * steps_ + 2 * tiles_ + 2 * rows);
  }
  void open(const bf16* keys, const bf16* values, int count, const Requests& requests) {
    requests_ = requests;
    if (count == kKeyBlock && call_.key_dim % kStepColumns == 0) {
      keys_ = {{reinterpret_cast<const std::byte*>(keys), nullptr}, call_.key_stride * 2};
    } else {
      lay_out_keys(keys, call_.key_stride, count, call_.key_dim, kKeyBlock,
                   reinterpret_cast<std::byte*>(call_.key_block), keys_);
    }
    values_ = values;
    count_ = count;
    damaged_ = {};
    layout_ = layout();
    laid_out_ = false;
  }
  void attend(int64_t row, int height, int64_t block, int first, int last) {
    const std::byte* queries = reinterpret_cast<const std::byte*>(call_.queries) +
                               row / kTileHeight * 2 * steps_ * kStepBytes;
    if (call_.rows <= kStackedRows) {
      attend_stacked(queries, height, block, first, last);
    } else {
      attend_apart(queries, row, height, block, first, last);
    }
  }

 private:
  /// A step of decoding: nothing is laid out.
  void attend_stacked(const std::byte* queries, int height, int64_t block, int first, int last) {
    const auto request = [&] { requests_.request(); };
    multiply_keys_stacked<Step::kPairs>(keys_, queries, steps_, sums_, request);
    turn_stacked(
        reinterpret_cast<const float*>(sums_), height, first, last, few_,
        [](const float* key) MOE_INLINE_LAMBDA {
          return _mm256_add_ps(_mm256_load_ps(key), _mm256_load_ps(key + kStackedRows));
        },
        request);
    soften<TileExp>(call_, {0, height}, block, first, last, few_, request);
    const SpreadRows rows = spread_rows(height);
    spread_weights(few_, height, first, last, rows, spread_, request);
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
      damaged_ = damaged_keys<kBlock>(values_, call_.value_stride, count_, call_.value_dim);
      if (!damaged_.empty()) copied();
    }
    const FewRows to = output(0, height, few_.shrink);
    add_spread(to, rows, columns, sums, request);
    if (damaged_.empty()) return;
    for (int r = 0; r < height; ++r) {
      KeySet<kBlock> counted;
      counted.word[0] = few_.counted[r];
      add_damaged(damaged_, counted, values_, call_.value_stride, call_.value_dim,
                  to.out + r * to.stride, [&](int key) {
                    const WeightParts parts = weight_parts(set1(few_.scores[r][key]));
                    float lanes[kLanes];
                    store(lanes, add(from_bits({cut(parts.hi)}), from_bits({cut(parts.lo)})));
                    return lanes[0];
                  });
    }
  }
  /// A block's values in whole steps, zeros behind their columns, for the keys behind `count` and
  /// for those to be left out.
  void copy_values(std::byte* to, int64_t row_bytes) const {
    const auto bytes = static_cast<size_t>(call_.value_dim) * 2;
    for (int j = 0; j < kKeyBlock; ++j) {
      std::byte* row = to + j * row_bytes;
      std::memset(row, 0, static_cast<size_t>(row_bytes));
      if (j < count_ && !damaged_.has(j)) std::memcpy(row, values_ + j * call_.value_stride, bytes);
    }
  }

  void attend_apart(const std::byte* queries, int64_t row, int height, int64_t block, int first,
                    int last) {
    with_layout(kKeyTiles * steps_, [&](auto meanwhile) {
      // Half a block's sums at a time: what a tile touches is more than L1 as it is.
      for (int tile = 0; tile < kKeyTiles; tile += 2) {
        multiply_keys_apart<Step::kPairs>(keys_, queries, steps_, sums_, meanwhile, tile, tile + 2);
        turn_lines(tile, tile + 2, w_.scores[0], kBlock, [&](int g, int i) MOE_INLINE_LAMBDA {
          return add(load(sums_[g - tile].hi + i * kLanes), load(sums_[g - tile].lo + i * kLanes));
        });
      }
    });
    const auto request = [&] { requests_.request(); };
    soften_wide(call_, {row, height}, block, first, last, w_, request);
    // Steps without a key that is seen were not written.
    for (int step = 0; step < kBlockHalves; ++step) {
      if (step >= first / 2 && step < (last + 1) / 2) continue;
      for (int r = 0; r < height; ++r) {
        std::memset(w_.scores[r] + step * kStepColumns, 0, kStepColumns * sizeof(float));
      }
    }
    const FewRows to = output(row, height, w_.shrink);
    multiply_values_apart<Step::kPairs, kBlockHalves, WideWeights<kBlock>::kStride, 2 * kLineBytes,
                          float>(
        w_.scores[0], w_.scores[0] + kLanes, reinterpret_cast<const std::byte*>(call_.value_block),
        tiles_, request, [&](int64_t c, const PartSums<float>(&sums)[2]) {
          add_parts(to, c, c + 1 < tiles_, sums[0].hi, sums[0].lo, sums[1].hi, sums[1].lo);
        });
    if (damaged_.empty()) return;
    for (int r = 0; r < height; ++r) {
      add_damaged(damaged_, w_.counted[r], values_, call_.value_stride, call_.value_dim,
                  to.out + r * to.stride, [&](int key) { return weight_of(w_, r, key); });
    }
  }

  /// Multiplies with the values laid out meanwhile, if they are not yet.
  template <class F>
  void with_layout(int64_t calls, F multiply) {
    if (laid_out_) {
      multiply([&] { requests_.request(); });
      return;
    }
    const int pairs = static_cast<int>((kKeyBlock / 2 + calls - 1) / calls);
    multiply([&] {
      requests_.request();
      layout_.advance(pairs);
    });
    layout_.finish();
    laid_out_ = true;
    if (layout_.finite()) return;
    damaged_ = damaged_keys<kBlock>(values_, call_.value_stride, count_, call_.value_dim);
    layout_ = layout();
    layout_.finish();
  }
  ValueLayout<bf16, kBlock> layout() const {
    return {values_,         call_.value_stride, count_,
            call_.value_dim, damaged_,           reinterpret_cast<std::byte*>(call_.value_block)};
  }
  FewRows output(int64_t row, int height, const float* shrink) const {
    return {shrink,           height,          call_.out + row * call_.out_stride,
            call_.out_stride, call_.out_width, interleaved_tiles<bf16>(call_.value_dim)};
  }

  const AttentionCall& call_;
  int64_t steps_, tiles_;
  Requests requests_{};
  KeyTiles keys_{};
  const bf16* values_ = nullptr;
  int count_ = 0;
  KeySet<kBlock> damaged_;
  ValueLayout<bf16, kBlock> layout_{nullptr, 0, kBlock, 0, {}, nullptr};
  bool laid_out_ = false;
  PartSums<float> sums_[kKeyTiles];
  WideWeights<kBlock> w_;  // a prompt's
  TileWeights few_;        // a step's
  SpreadWeights spread_ = {};
};
}  // namespace moe::MOE_ISA
