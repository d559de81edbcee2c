#pragma once
// Attention in AMX tiles over int8 keys and values (isa/attention_tiles.h): integers.
//
// Definition    A row of queries, and a row of a block's weights, is factor · (254 hi + lo) with
//               signed bytes and factor = max / (127 · 254), so it keeps 16 bits of its largest
//               number. Sums of products are exact, then scaled: Σ = factor · (254 Σ hi + Σ lo).
// Regularities  A factor is a row's own (weights': of one block), so that nothing depends on the
//               rows beside it. Keys are read as they lie, values four keys to a word.
// Cost          Half the products of bfloat16 parts, and no conversion.

#include "moe/kernels/isa/attention_few.h"
#include "moe/kernels/isa/attention_requests.h"

namespace moe::MOE_ISA {

inline constexpr int64_t kByteColumns = 64;  // of a tile's row
inline constexpr float kByteParts = 254.0f;  // hi's unit in lo's

MOE_INLINE int64_t byte_steps(int64_t dim) { return (dim + kByteColumns - 1) / kByteColumns; }
/// Bytes of sixteen queries: hi, lo [step][sixteen words][sixteen queries], and their factors.
MOE_INLINE int64_t byte_query_tile(int64_t steps) { return 2 * steps * kStepBytes + kLineBytes; }

/// How a row becomes bytes. One with NaN or Inf has a NaN factor: the damage stays in that row.
struct ByteScale {
  float factor, inverse;
};
MOE_INLINE ByteScale byte_scale(F32x16 largest, bool damaged) {
  const float top = reduce_max(largest);
  if (damaged) return {__builtin_nanf(""), 0.0f};
  // A subnormal maximum would make the inverse infinite; such a row is zero to all purposes.
  return {top / (127.0f * kByteParts), top < 1e-30f ? 0.0f : 127.0f / top};
}
MOE_INLINE void store_byte_parts(F32x16 x, float inverse, int8_t* hi, int8_t* lo) {
  // 0 · NaN would be what the processor makes of it: a damaged row is zeros.
  const F32x16 scaled = inverse == 0.0f ? zero_f32() : mul(x, set1(inverse));
  const I32x16 whole = round_to_i32(scaled);
  store_i8(hi, whole);
  store_i8(lo, round_to_i32(mul(sub(scaled, to_f32(whole)), set1(kByteParts))));
}

/// Queries as [tile of sixteen][hi, lo][step][sixteen words][sixteen queries] and their factors; of
/// up to eight rows as [step][sixteen words][hi of eight queries, lo].
static void pack_query_bytes(const QueryRows& q, int64_t, float* packed) noexcept {
  const int64_t dim = q.head_dim + q.tail_dim, steps = byte_steps(dim);
  auto* out = reinterpret_cast<std::byte*>(packed);
  for (int64_t first = 0; first < q.rows; first += kTileHeight) {
    float scales[kTileHeight] = {};
    alignas(64) float factors[kTileHeight] = {};
    const auto column = [&](int64_t row, int64_t d) MOE_INLINE_LAMBDA {
      return (d < q.head_dim ? q.head[row][d] : q.tail[row][d - q.head_dim]) * q.scale;
    };
    // Sixteen columns of a row, zeros behind.
    const auto columns = [&](int64_t row, int64_t d) MOE_INLINE_LAMBDA {
      if (d + kLanes <= q.head_dim) return mul(load(q.head[row] + d), set1(q.scale));
      float few[kLanes] = {};
      for (int64_t i = 0; i < kLanes && d + i < dim; ++i) few[i] = column(row, d + i);
      return load(few);
    };
    const int64_t rows = q.rows - first < kTileHeight ? q.rows - first : kTileHeight;
    for (int64_t r = 0; r < rows; ++r) {
      F32x16 largest = zero_f32();
      uint32_t bad = 0;
      for (int64_t d = 0; d < dim; d += kLanes) {
        const F32x16 x = columns(first + r, d);
        largest = max(abs(x), largest);
        bad |= to_bitmask(is_nan(sub(x, x)));  // Inf − Inf is NaN
      }
      const ByteScale scale = byte_scale(largest, bad != 0);
      scales[r] = scale.inverse;
      factors[r] = scale.factor;
    }
    for (int64_t s = 0; s < steps; ++s) {
      alignas(64) int8_t bytes[2][kTileHeight][kByteColumns] = {};
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t d = 0; d < kByteColumns && s * kByteColumns + d < dim; d += kLanes) {
          store_byte_parts(columns(first + r, s * kByteColumns + d), scales[r], bytes[0][r] + d,
                           bytes[1][r] + d);
        }
      }
      const bool stacked = q.rows <= kStackedRows;
      for (int part = 0; part < (stacked ? 1 : 2); ++part) {
        __m512i words[16];
        for (int r = 0; r < kTileHeight; ++r) {
          words[r] = _mm512_load_si512(stacked ? bytes[r / kStackedRows][r % kStackedRows]
                                               : bytes[part][r]);
        }
        transpose_lanes(words);
        std::byte* to = out + (part * steps + s) * kStepBytes;
        for (int i = 0; i < kTileWords; ++i) _mm512_storeu_si512(to + i * kLineBytes, words[i]);
      }
    }
    std::memcpy(out + 2 * steps * kStepBytes, factors, sizeof(factors));
    out += byte_query_tile(steps);
  }
}

/// Values as [column tile][sixteen words: four keys][sixteen columns], zeros for the keys behind
/// `count`. Laid out four keys at a time, while tiles multiply.
class ByteValueLayout {
 public:
  static constexpr int kParts = kKeyBlock / 4;

  ByteValueLayout(const int8_t* values, int64_t stride, int count, int64_t dim, std::byte* block)
      : values_(values), stride_(stride), dim_(dim), count_(count), block_(block) {}

  [[gnu::always_inline]] inline void advance(int parts) {
    for (; parts > 0 && next_ < kParts; --parts) lay_out(next_++);
  }

 private:
  [[gnu::always_inline]] inline void lay_out(int word) {
    // Four columns of each of the four column tiles come into one quarter.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int64_t c = 0; c < dim_; c += kByteColumns) {
      const int64_t left = dim_ - c;
      const __mmask64 columns = left >= kByteColumns ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
      __m512i key[4];
      MOE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int j = word * 4 + i;
        key[i] = j < count_ ? _mm512_maskz_loadu_epi8(columns, values_ + j * stride_ + c)
                            : _mm512_setzero_si512();
        key[i] = _mm512_permutexvar_epi32(order, key[i]);
      }
      const __m512i low = _mm512_unpacklo_epi8(key[0], key[1]);
      const __m512i high = _mm512_unpackhi_epi8(key[0], key[1]);
      const __m512i low_next = _mm512_unpacklo_epi8(key[2], key[3]);
      const __m512i high_next = _mm512_unpackhi_epi8(key[2], key[3]);
      std::byte* to = block_ + c / kLanes * kStepBytes + word * kLineBytes;
      _mm512_storeu_si512(to, _mm512_unpacklo_epi16(low, low_next));
      if (left > kLanes) {
        _mm512_storeu_si512(to + kStepBytes, _mm512_unpackhi_epi16(low, low_next));
      }
      if (left > 2 * kLanes) {
        _mm512_storeu_si512(to + 2 * kStepBytes, _mm512_unpacklo_epi16(high, high_next));
      }
      if (left > 3 * kLanes) {
        _mm512_storeu_si512(to + 3 * kStepBytes, _mm512_unpackhi_epi16(high, high_next));
      }
    }
  }

  const int8_t* values_;
  int64_t stride_, dim_;
  int count_;
  std::byte* block_;
  int next_ = 0;
};

using ByteSums = PartSums<int32_t>;
MOE_INLINE F32x16 unscaled(const ByteSums& sums, int64_t line) {
  return fma(to_f32(load_i32(sums.hi + line * kLanes)), set1(kByteParts),
             to_f32(load_i32(sums.lo + line * kLanes)));
}

/// A tile's weights as the first operand, and their factors.
struct alignas(64) ByteWeights {
  int8_t hi[kTileHeight][kKeyBlock], lo[kTileHeight][kKeyBlock];
  float factor[kTileHeight];
};

MOE_INLINE void lay_out_weights(const TileWeights& w, int height, int first, int last,
                                int8_t* hi_rows, int8_t* lo_rows, float* factors) {
  for (int r = 0; r < height; ++r) {
    F32x16 x[kGroups], largest = zero_f32();
    uint32_t bad = 0;
    MOE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      // A key that is not counted weighs 0 even where its value's scale is NaN.
      const auto lanes = static_cast<__mmask16>(
          g < first || g >= last ? 0 : w.counted[r] >> (g * kLanes) & 0xffff);
      x[g] = {_mm512_maskz_loadu_ps(lanes, w.scores[r] + g * kLanes)};
      largest = max(abs(x[g]), largest);
      bad |= to_bitmask(is_nan(sub(x[g], x[g])));
    }
    const ByteScale scale = byte_scale(largest, bad != 0);
    factors[r] = scale.factor;
    MOE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      const int64_t at = r * kKeyBlock + g * kLanes;
      store_byte_parts(x[g], scale.inverse, hi_rows + at, lo_rows + at);
    }
  }
}

/// out[r] = out[r] · shrink[r] + factor[r] · sums[r], in two column tiles from `c` on.
MOE_INLINE void add_byte_sums(const TileWeights& w, const ByteWeights& weights, int height,
                              const ByteSums (&sums)[2], int64_t c, int64_t tiles, float* out,
                              int64_t stride) {
  for (int r = 0; r < height; ++r) {
    const F32x16 shrink = set1(w.shrink[r]), factor = set1(weights.factor[r]);
    float* at = out + r * stride + c * kLanes;
    store(at, fma(load(at), shrink, mul(unscaled(sums[0], r), factor)));
    if (c + 1 < tiles) {
      store(at + kLanes, fma(load(at + kLanes), shrink, mul(unscaled(sums[1], r), factor)));
    }
  }
}

/// The same for stacked sums, column tiles from `first` on.
MOE_INLINE void add_stacked_bytes(const TileWeights& w, const ByteWeights& weights, int height,
                                  const int32_t (*sums)[kTileWeights], int64_t first, int64_t tiles,
                                  float* out, int64_t stride) {
  for (int r = 0; r < height; ++r) {
    const F32x16 shrink = set1(w.shrink[r]), factor = set1(weights.factor[r]);
    for (int64_t c = 0; c < tiles; ++c) {
      float* at = out + r * stride + (first + c) * kLanes;
      const F32x16 hi = to_f32(load_i32(sums[c] + r * kLanes));
      const F32x16 lo = to_f32(load_i32(sums[c] + (kStackedRows + r) * kLanes));
      store(at, fma(load(at), shrink, mul(fma(hi, set1(kByteParts), lo), factor)));
    }
  }
}

/// One call's tiles over int8 keys and values: see attend_tiles.
class ByteTiles {
 public:
  using Number = int8_t;
  static constexpr int kBlock = kKeyBlock;
  static constexpr int64_t kRows = kTileHeight;

  explicit ByteTiles(const AttentionCall& call)
      : call_(call), steps_(byte_steps(call.key_dim)), tiles_(call.out_width / kLanes) {}

  /// Steps of a block: requests are spread over them.
  int64_t parts() const {
    const int64_t groups = (call_.rows + kRows - 1) / kRows;
    const int64_t rows = call_.rows < kRows ? call_.rows : kRows;
    return groups * (kKeyTiles * steps_ + kGroups + tiles_ + 2 * rows);
  }
  void open(const int8_t* keys, const int8_t* values, int count, const Requests& requests) {
    requests_ = requests;
    if (count == kKeyBlock && call_.key_dim % kByteColumns == 0) {
      keys_ = {{reinterpret_cast<const std::byte*>(keys), nullptr}, call_.key_stride};
    } else {
      auto* block = reinterpret_cast<std::byte*>(call_.key_block);
      keys_ = {{block, nullptr}, steps_ * kLineBytes};
      std::memset(block, 0, static_cast<size_t>(kKeyBlock * keys_.stride));
      for (int j = 0; j < count; ++j) {
        std::memcpy(block + j * keys_.stride, keys + j * call_.key_stride,
                    static_cast<size_t>(call_.key_dim));
      }
    }
    auto* block = reinterpret_cast<std::byte*>(call_.value_block);
    layout_ = ByteValueLayout(values, call_.value_stride, count, call_.value_dim, block);
    laid_out_ = false;
  }
  void attend(int64_t row, int height, int64_t block, int first, int last) {
    const std::byte* queries = reinterpret_cast<const std::byte*>(call_.queries) +
                               row / kTileHeight * byte_query_tile(steps_);
    const auto* factors = reinterpret_cast<const float*>(queries + 2 * steps_ * kStepBytes);
    const auto* values = reinterpret_cast<const std::byte*>(call_.value_block);
    float* out = call_.out + row * call_.out_stride;
    const auto request = [&] { requests_.request(); };
    if (call_.rows <= kStackedRows) {
      with_layout(kKeyTiles * steps_, [&](auto meanwhile) {
        multiply_keys_stacked<Step::kSigned>(keys_, queries, steps_, sums_, meanwhile);
      });
      const __m256 unit = _mm256_set1_ps(kByteParts), scales = _mm256_loadu_ps(factors);
      turn_stacked(
          reinterpret_cast<const int32_t*>(sums_), height, first, last, w_,
          [&](const int32_t* key) MOE_INLINE_LAMBDA {
            const auto eight = [&](int i) MOE_INLINE_LAMBDA {
              return _mm256_cvtepi32_ps(
                  _mm256_load_si256(reinterpret_cast<const __m256i*>(key + i * kStackedRows)));
            };
            return _mm256_mul_ps(_mm256_fmadd_ps(eight(0), unit, eight(1)), scales);
          },
          request);
      soften<TileExp>(call_, {row, height}, block, first, last, w_, request);
      lay_out_weights(w_, height, first, last, weights_.hi[0], weights_.hi[kStackedRows],
                      weights_.factor);
      multiply_values_stacked<Step::kSigned, 1, int32_t>(
          weights_.hi, values, tiles_, request,
          [&](int64_t c, int64_t count, const int32_t (*sums)[kTileWeights]) {
            add_stacked_bytes(w_, weights_, height, sums, c, count, out, call_.out_stride);
          });
      return;
    }
    with_layout(kKeyTiles * steps_, [&](auto meanwhile) {
      multiply_keys_apart<Step::kSigned>(keys_, queries, steps_, sums_, meanwhile);
    });
    const F32x16 scales = load(factors);
    turn_lines(first, last, w_.scores[0], kKeyBlock,
               [&](int g, int i) MOE_INLINE_LAMBDA { return mul(unscaled(sums_[g], i), scales); });
    soften<TileExp>(call_, {row, height}, block, first, last, w_, request);
    lay_out_weights(w_, height, first, last, weights_.hi[0], weights_.lo[0], weights_.factor);
    multiply_values_apart<Step::kSigned, 1, kLineBytes, kLineBytes, int32_t>(
        weights_.hi, weights_.lo, values, tiles_, request,
        [&](int64_t c, const ByteSums(&sums)[2]) {
          add_byte_sums(w_, weights_, height, sums, c, tiles_, out, call_.out_stride);
        });
  }

 private:
  /// Multiplies with the values laid out meanwhile, if they are not yet.
  template <class F>
  void with_layout(int64_t calls, F multiply) {
    if (laid_out_) {
      multiply([&] { requests_.request(); });
      return;
    }
    const int parts = static_cast<int>((ByteValueLayout::kParts + calls - 1) / calls);
    multiply([&] {
      requests_.request();
      layout_.advance(parts);
    });
    layout_.advance(ByteValueLayout::kParts);
    laid_out_ = true;
  }

  const AttentionCall& call_;
  int64_t steps_, tiles_;
  Requests requests_{};
  KeyTiles keys_{};
  ByteValueLayout layout_{nullptr, 0, 0, 0, nullptr};
  bool laid_out_ = false;
  ByteSums sums_[kKeyTiles];
  TileWeights w_;
  ByteWeights weights_ = {};
};

}  // namespace moe::MOE_ISA
