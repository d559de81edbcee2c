#pragma once
// What attention's tiles multiply (isa/attention_tiles.h): numbers as bfloat16 ones, laid out.
//
// Definition    x = hi + lo, each the nearest bfloat16 number: queries and weights so to 16 bits,
//               float16 keys and values exactly. bfloat16 numbers and 8-bit integers are hi alone.
// Regularities  Keys are rows of the first operand, as they lie in the cache; queries columns of
// the
//               second. Weights are rows of the first, values the second: two keys to a word.

#include <type_traits>

#include "moe/kernels/isa/amx.h"
#include "moe/kernels/isa/softmax_rows.h"

namespace moe::MOE_ISA {

inline constexpr int64_t kStepColumns = 32;  // bfloat16 numbers in a tile's row
inline constexpr int kBlockHalves = kKeyBlock / kStepColumns;
inline constexpr int kKeyTiles = kKeyBlock / kTileHeight;
inline constexpr int kTileWeights = kTileHeight * kTileWords;  // words or floats of a tile

/// bfloat16 numbers whose sum is a key's number.
template <class T>
inline constexpr int kNumberParts = 1;
template <>
inline constexpr int kNumberParts<f16> = 2;

/// Values whose pairs are made without widening them: two column tiles hold thirty-two columns,
/// four of each eight in the first, four in the second.
template <class T>
inline constexpr bool kInterleaved = std::is_same_v<T, bf16>;
template <class T>
MOE_INLINE int64_t interleaved_tiles(int64_t dim) {
  return kInterleaved<T> ? dim / kStepColumns * 2 : 0;
}

MOE_INLINE int64_t query_steps(int64_t dim) { return (dim + kStepColumns - 1) / kStepColumns; }

/// Thirty-two numbers to the nearest bfloat16 ones, in order, and what is left of them.
struct Rounded {
  __m512i pairs;
  F32x16 left[2];
};
MOE_INLINE Rounded round_to_pairs(F32x16 a, F32x16 b) {
  Rounded to;
  to.pairs = (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v);
  const F32x16 first = {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(to.pairs)), 16))};
  const F32x16 second = {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(to.pairs, 1)), 16))};
  to.left[0] = sub(a, first);
  to.left[1] = sub(b, second);
  return to;
}

/// rows[i][j] → rows[j][i]
MOE_INLINE void transpose_lanes(__m512i (&a)[16]) {
  __m512i b[16];
  MOE_UNROLL
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  MOE_UNROLL
  for (int i = 0; i < 16; i += 4) {
    MOE_UNROLL
    for (int k = 0; k < 2; ++k) {
      a[i + 2 * k] = _mm512_unpacklo_epi64(b[i + k], b[i + k + 2]);
      a[i + 2 * k + 1] = _mm512_unpackhi_epi64(b[i + k], b[i + k + 2]);
    }
  }
  // a[4 g + c]: columns c, c + 4, c + 8, c + 12 of rows 4 g to 4 g + 3, in the four quarters.
  MOE_UNROLL
  for (int c = 0; c < 4; ++c) {
    const __m512i low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
    const __m512i low_below = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
    const __m512i high_below = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
    b[c] = _mm512_shuffle_i32x4(low, low_below, 0x88);
    b[4 + c] = _mm512_shuffle_i32x4(high, high_below, 0x88);
    b[8 + c] = _mm512_shuffle_i32x4(low, low_below, 0xdd);
    b[12 + c] = _mm512_shuffle_i32x4(high, high_below, 0xdd);
  }
  MOE_UNROLL
  for (int i = 0; i < 16; ++i) a[i] = b[i];
}

/// A step of query `row`, scaled and rounded.
MOE_INLINE void round_query(const QueryRows& q, int64_t row, int64_t step, __m512i& hi,
                            __m512i& lo) {
  const int64_t dim = q.head_dim + q.tail_dim, begin = step * kStepColumns;
  alignas(64) float few[kStepColumns] = {};
  const float* x = few;
  if (row < q.rows && begin + kStepColumns <= q.head_dim) {
    x = q.head[row] + begin;
  } else if (row < q.rows) {
    for (int64_t d = begin; d < begin + kStepColumns && d < dim; ++d) {
      few[d - begin] = d < q.head_dim ? q.head[row][d] : q.tail[row][d - q.head_dim];
    }
  }
  const F32x16 scale = set1(q.scale);
  const Rounded rounded = round_to_pairs(mul(load(x), scale), mul(load(x + kLanes), scale));
  hi = rounded.pairs;
  lo = round_to_pairs(rounded.left[0], rounded.left[1]).pairs;
}

/// Queries as [tile of sixteen][hi, lo][step][sixteen words][sixteen queries].
static void pack_query_tiles(const QueryRows& q, int64_t, float* packed) noexcept {
  const int64_t steps = query_steps(q.head_dim + q.tail_dim);
  auto* out = reinterpret_cast<std::byte*>(packed);
  for (int64_t first = 0; first < q.rows; first += kTileHeight) {
    for (int64_t s = 0; s < steps; ++s) {
      __m512i hi[16], lo[16];
      for (int64_t r = 0; r < kTileHeight; ++r) round_query(q, first + r, s, hi[r], lo[r]);
      transpose_lanes(hi);
      transpose_lanes(lo);
      for (int64_t word = 0; word < kTileWords; ++word) {
        _mm512_storeu_si512(out + s * kStepBytes + word * kLineBytes, hi[word]);
        _mm512_storeu_si512(out + (steps + s) * kStepBytes + word * kLineBytes, lo[word]);
      }
    }
    out += 2 * steps * kStepBytes;
  }
}

/// A block's keys as tiles read them: kKeyBlock rows of each part.
struct KeyTiles {
  const std::byte* part[2];
  int64_t stride;  // bytes
};

/// A block's keys in whole steps, zeros behind their columns and behind `count`.
template <class T>
static void lay_out_keys(const T* keys, int64_t stride, int count, int64_t dim, std::byte* block,
                         KeyTiles& to) noexcept {
  const int64_t steps = query_steps(dim), row_bytes = steps * kLineBytes;
  to.stride = row_bytes;
  for (int part = 0; part < kNumberParts<T>; ++part) {
    to.part[part] = block + part * kKeyBlock * row_bytes;
  }
  for (int j = 0; j < count; ++j) {
    const T* key = keys + j * stride;
    std::byte* row = block + j * row_bytes;
    if constexpr (std::is_same_v<T, bf16>) {
      std::memcpy(row, key, static_cast<size_t>(dim) * 2);
      std::memset(row + dim * 2, 0, static_cast<size_t>(row_bytes - dim * 2));
    } else {
      for (int64_t s = 0; s < steps; ++s) {
        const int64_t d = s * kStepColumns, left = dim - d;
        const F32x16 a = load_padded(key + d, left);
        const F32x16 b = left > kLanes ? load_padded(key + d + kLanes, left - kLanes) : zero_f32();
        const Rounded rounded = round_to_pairs(a, b);
        _mm512_storeu_si512(row + s * kLineBytes, rounded.pairs);
        if constexpr (kNumberParts<T> == 2) {
          _mm512_storeu_si512(row + kKeyBlock * row_bytes + s * kLineBytes,
                              round_to_pairs(rounded.left[0], rounded.left[1]).pairs);
        }
      }
    }
  }
  for (int part = 0; part < kNumberParts<T>; ++part) {
    std::memset(block + (part * kKeyBlock + count) * row_bytes, 0,
                static_cast<size_t>((kKeyBlock - count) * row_bytes));
  }
}

/// Words of two keys' numbers. (x >> 16) | (y & upper): exact for bfloat16 numbers, what lies
/// before the cut for others.
MOE_INLINE __m512i pair_keys(__m512i x, __m512i y) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return _mm512_ternarylogic_epi32(_mm512_srli_epi32(x, 16), y, upper, 0xf8);
}
MOE_INLINE F32x16 behind_cut(F32x16 a) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_sub_ps(a.v, _mm512_castsi512_ps(_mm512_and_si512(bits(a).v, upper)))};
}

/// Values as [part][half of the block][column tile][sixteen words: two keys][sixteen columns],
/// zeros for the keys behind `count` and those to be left out. Laid out two keys at a time, kGap
/// keys apart, so that it can be done while tiles multiply.
template <class T, int kGap = 1>
class ValueLayout {
 public:
  ValueLayout(const T* values, int64_t stride, int count, int64_t dim, uint64_t left_out,
              std::byte* block)
      : values_(values),
        stride_(stride),
        dim_(dim),
        tiles_((dim + kLanes - 1) / kLanes),
        present_(~left_out & ~uint64_t{0} >> (kKeyBlock - count)),
        block_(block),
        largest_(_mm512_setzero_si512()) {}

  [[gnu::always_inline]] inline void advance(int pairs) {
    for (; pairs > 0 && next_ < kKeyBlock; --pairs) {
      lay_out_pair(next_);
      next_ += 2;
    }
  }
  void finish() { advance(kKeyBlock); }
  /// Whether all numbers are finite.
  bool finite() const { return _mm512_cmpge_epu16_mask(largest_, _mm512_set1_epi16(0x7f80)) == 0; }

 private:
  [[gnu::always_inline]] inline void lay_out_pair(int j) {
    std::byte* to =
        block_ + j / kStepColumns * tiles_ * kStepBytes + j % kStepColumns / 2 * kLineBytes;
    const int key = kGap == 1 ? j : j / kStepColumns * kStepColumns + j % kStepColumns / 2;
    const T* even = values_ + key * stride_;
    const bool has_even = (present_ >> key & 1) != 0, has_odd = (present_ >> (key + kGap) & 1) != 0;
    const T* odd = has_odd ? even + kGap * stride_ : even;
    __m512i largest = largest_;  // in a register: tiles' instructions are fences to the compiler
    const auto put = [&](__m512i words, std::byte* at) MOE_INLINE_LAMBDA {
      largest = _mm512_max_epu16(largest, _mm512_and_si512(words, _mm512_set1_epi16(0x7fff)));
      _mm512_storeu_si512(at, words);
    };
    const auto put_floats = [&](F32x16 a, F32x16 b, std::byte* at) MOE_INLINE_LAMBDA {
      put(pair_keys(bits(a).v, bits(b).v), at);
      if constexpr (kNumberParts<T> == 2) {
        _mm512_storeu_si512(at + kBlockHalves * tiles_ * kStepBytes,
                            pair_keys(bits(behind_cut(a)).v, bits(behind_cut(b)).v));
      }
    };
    int64_t c = 0;
    if constexpr (kInterleaved<T>) {
      for (; c < interleaved_tiles<T>(dim_); c += 2) {
        __m512i x = _mm512_setzero_si512(), y = x;
        if (has_even) x = _mm512_loadu_si512(even + c * kLanes);
        if (has_odd) y = _mm512_loadu_si512(odd + c * kLanes);
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
  uint64_t present_;
  std::byte* block_;
  __m512i largest_;  // bfloat16 numbers without signs, as integers
  int next_ = 0;
};

/// [key][sixteen queries] → scores[query][key], groups [first, last) of sixteen keys. line(g, i):
/// the scores of key i of a group.
template <class F>
MOE_INLINE void turn_lines(int first, int last, TileWeights& w, F line) {
  for (int g = first; g < last; ++g) {
    __m512i a[16];
    MOE_UNROLL
    for (int i = 0; i < 16; ++i) a[i] = bits(line(g, i)).v;
    transpose_lanes(a);
    MOE_UNROLL
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(w.scores[i] + g * kLanes, a[i]);
  }
}
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
    turn_lines(g, g + 1, w, [&](int group, int i) MOE_INLINE_LAMBDA {
      return load(from + group * kTileWeights + i * kLanes);
    });
  }
}

/// A tile's weights as the first operand: [hi, lo][sixteen rows][keys].
struct alignas(64) WeightTiles {
  uint16_t part[2][kTileHeight][kKeyBlock];
};

/// Thirty-two weights of a row in order, or (kGap 16) words of number i of the lower sixteen and
/// number i of the upper ones.
template <int kGap>
MOE_INLINE void store_weights(F32x16 a, F32x16 b, uint16_t* hi, uint16_t* lo) {
  const Rounded rounded = round_to_pairs(a, b);
  const __m512i left = round_to_pairs(rounded.left[0], rounded.left[1]).pairs;
  if constexpr (kGap == 1) {
    _mm512_store_si512(hi, rounded.pairs);
    _mm512_store_si512(lo, left);
  } else {
    const __m512i order =
        _mm512_setr_epi32(0x00100000, 0x00110001, 0x00120002, 0x00130003, 0x00140004, 0x00150005,
                          0x00160006, 0x00170007, 0x00180008, 0x00190009, 0x001a000a, 0x001b000b,
                          0x001c000c, 0x001d000d, 0x001e000e, 0x001f000f);
    _mm512_store_si512(hi, _mm512_permutexvar_epi16(order, rounded.pairs));
    _mm512_store_si512(lo, _mm512_permutexvar_epi16(order, left));
  }
}

template <int kGap = 1>
MOE_INLINE void lay_out_weights(const TileWeights& w, int height, int first, int last,
                                uint16_t* hi_rows, uint16_t* lo_rows) {
  for (int r = 0; r < height; ++r) {
    uint16_t *hi = hi_rows + r * kKeyBlock, *lo = lo_rows + r * kKeyBlock;
    const float* x = w.scores[r];
    if (last - first == kGroups && w.counted[r] == ~uint64_t{0}) {
      MOE_UNROLL
      for (int j = 0; j < kKeyBlock; j += kStepColumns) {
        store_weights<kGap>(load(x + j), load(x + j + kLanes), hi + j, lo + j);
      }
      continue;
    }
    // A key that is not counted weighs 0 even where its value's scale is NaN.
    const auto group = [&](int g) MOE_INLINE_LAMBDA {
      const auto lanes = static_cast<__mmask16>(w.counted[r] >> (g * kLanes));
      return g < first || g >= last ? zero_f32()
                                    : F32x16{_mm512_maskz_loadu_ps(lanes, x + g * kLanes)};
    };
    for (int g = 0; g < kGroups; g += 2) {
      store_weights<kGap>(group(g), group(g + 1), hi + g * kLanes, lo + g * kLanes);
    }
  }
}

}  // namespace moe::MOE_ISA
