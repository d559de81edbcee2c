#pragma once
// Values of 16 bits as attention's tiles multiply them: the second operand (attention_operands.h).
//
// Shapes        values [count, Dv] → [part][step of 32 keys][column tile][sixteen words][sixteen]
// Definition    A word is the numbers of two keys, sixteen apart: so the lines of a row of weights
//               need no other order to become words.
// Cost          A load, an exchange and a store of each line of values, once for all rows.

#include "moe/kernels/isa/attention_operands.h"

namespace moe::MOE_ISA {

/// Values whose pairs are made without widening them: two column tiles hold thirty-two columns,
/// four of each eight in the first, four in the second.
template <class T>
inline constexpr bool kInterleaved = std::is_same_v<T, bf16>;
template <class T>
MOE_INLINE int64_t interleaved_tiles(int64_t dim) {
  return kInterleaved<T> ? dim / kStepColumns * 2 : 0;
}

/// Keys of a block, a bit each.
template <int kBlock>
struct KeySet {
  uint64_t word[kBlock / 64] = {};

  bool has(int key) const { return (word[key / 64] >> (key % 64) & 1) != 0; }
  void add(int key) { word[key / 64] |= uint64_t{1} << (key % 64); }
  bool empty() const {
    uint64_t any = 0;
    for (const uint64_t w : word) any |= w;
    return any == 0;
  }
};

/// Lays out a block's values, zeros for the keys behind `count` and those to be left out: a pair of
/// keys at a time, so that it can be done while tiles multiply. Of a block of kKeyBlock keys all
/// steps are written, of a wider one those with keys.
template <class T, int kBlock>
class ValueLayout {
 public:
  static constexpr int kStepKeys = 32, kPairs = kBlock / 2;

  ValueLayout(const T* values, int64_t stride, int count, int64_t dim,
              const KeySet<kBlock>& left_out, std::byte* block)
      : values_(values),
        stride_(stride),
        dim_(dim),
        tiles_((dim + kLanes - 1) / kLanes),
        left_out_(left_out),
        count_(count),
        pairs_(count <= kBlock - kKeyBlock ? (count + kStepKeys - 1) / kStepKeys * (kStepKeys / 2)
                                           : kPairs),
        block_(block),
        largest_(_mm512_setzero_si512()) {}

  [[gnu::always_inline]] inline void advance(int pairs) {
    for (; pairs > 0 && next_ < pairs_; --pairs) lay_out_pair(next_++);
  }
  void finish() { advance(kPairs); }
  /// Whether all numbers are finite.
  bool finite() const { return _mm512_cmpge_epu16_mask(largest_, _mm512_set1_epi16(0x7f80)) == 0; }
  /// Bytes of a part.
  static int64_t part_bytes(int64_t tiles) { return kBlock / kStepKeys * tiles * kStepBytes; }

 private:
  bool present(int key) const { return key < count_ && !left_out_.has(key); }

  [[gnu::always_inline]] inline void lay_out_pair(int pair) {
    const int step = pair / kTileWords, word = pair % kTileWords;
    std::byte* to = block_ + step * tiles_ * kStepBytes + word * kLineBytes;
    const int key = step * kStepKeys + word;
    const T* even = values_ + key * stride_;
    const bool has_even = present(key), has_odd = present(key + kTileWords);
    const T* odd = even + kTileWords * stride_;
    __m512i largest = largest_;  // in a register: tiles' instructions are fences to the compiler
    const auto put = [&](__m512i words, std::byte* at) MOE_INLINE_LAMBDA {
      largest = _mm512_max_epu16(largest, _mm512_and_si512(words, _mm512_set1_epi16(0x7fff)));
      _mm512_storeu_si512(at, words);
    };
    const auto put_floats = [&](F32x16 a, F32x16 b, std::byte* at) MOE_INLINE_LAMBDA {
      put(pair_words(bits(a).v, bits(b).v), at);
      if constexpr (kNumberParts<T> == 2) {
        _mm512_storeu_si512(at + part_bytes(tiles_),
                            pair_words(bits(behind_cut(a)).v, bits(behind_cut(b)).v));
      }
    };
    int64_t c = 0;
    if constexpr (kInterleaved<T>) {
      const __mmask16 first = has_even ? 0xffff : 0, second = has_odd ? 0xffff : 0;
      for (; c < interleaved_tiles<T>(dim_); c += 2) {
        const __m512i x = _mm512_maskz_loadu_epi32(first, even + c * kLanes);
        const __m512i y = _mm512_maskz_loadu_epi32(second, odd + c * kLanes);
        put(_mm512_unpacklo_epi16(x, y), to + c * kStepBytes);
        put(_mm512_unpackhi_epi16(x, y), to + (c + 1) * kStepBytes);
      }
    }
    if (has_even && has_odd) {
      for (; c < dim_ / kLanes; ++c) {
        put_floats(load(even + c * kLanes), load(odd + c * kLanes), to + c * kStepBytes);
      }
    }
    for (; c < tiles_; ++c) {
      const int64_t at = c * kLanes;
      put_floats(has_even ? load_padded(even + at, dim_ - at) : zero_f32(),
                 has_odd ? load_padded(odd + at, dim_ - at) : zero_f32(), to + c * kStepBytes);
    }
    largest_ = largest;
  }

  const T* values_;
  int64_t stride_, dim_, tiles_;
  KeySet<kBlock> left_out_;
  int count_, pairs_;
  std::byte* block_;
  __m512i largest_;  // bfloat16 numbers without signs, as integers
  int next_ = 0;
};

/// A quarter of the pairs of a step's 32 keys, up to four column tiles of bfloat16 values: small
/// enough to be done while tiles multiply. Nothing is missing, and whether all is finite is not
/// looked at.
inline constexpr int kQuarters = 4;
MOE_INLINE void lay_out_quarter(const bf16* values, int64_t stride, int columns, int quarter,
                                std::byte* to) {
  constexpr int kWords = kTileWords / kQuarters;
  const auto put = [](const bf16* even, const bf16* odd, std::byte* at) MOE_INLINE_LAMBDA {
    const __m512i x = _mm512_loadu_si512(even), y = _mm512_loadu_si512(odd);
    _mm512_storeu_si512(at, _mm512_unpacklo_epi16(x, y));
    _mm512_storeu_si512(at + kStepBytes, _mm512_unpackhi_epi16(x, y));
  };
  const bf16 *even = values + quarter * kWords * stride, *odd = even + kTileWords * stride;
  to += quarter * kWords * kLineBytes;
  MOE_UNROLL
  for (int i = 0; i < kWords; ++i, even += stride, odd += stride, to += kLineBytes) {
    put(even, odd, to);
    if (columns > 2) put(even + kStepColumns, odd + kStepColumns, to + 2 * kStepBytes);
  }
}

/// The keys of a block with a number that is not finite.
template <int kBlock, class T>
static KeySet<kBlock> damaged_keys(const T* values, int64_t stride, int count,
                                   int64_t dim) noexcept {
  KeySet<kBlock> damaged;
  for (int j = 0; j < count; ++j) {
    F32x16 zeros = zero_f32();
    for (int64_t c = 0; c < dim; c += kLanes) {
      zeros = fma(load_padded(values + j * stride + c, dim - c), zero_f32(), zeros);
    }
    if (to_bitmask(is_nan(zeros)) != 0) damaged.add(j);
  }
  return damaged;
}

}  // namespace moe::MOE_ISA
