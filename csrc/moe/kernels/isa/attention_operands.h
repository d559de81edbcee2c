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
#include "moe/kernels/isa/bf16_parts.h"
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

MOE_INLINE int64_t query_steps(int64_t dim) { return (dim + kStepColumns - 1) / kStepColumns; }

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

/// `rows` keys in whole steps, zeros behind their columns and behind `count`.
template <class T>
static void lay_out_keys(const T* keys, int64_t stride, int count, int64_t dim, int rows,
                         std::byte* block, KeyTiles& to) noexcept {
  const int64_t steps = query_steps(dim), row_bytes = steps * kLineBytes;
  to.stride = row_bytes;
  for (int part = 0; part < kNumberParts<T>; ++part) {
    to.part[part] = block + part * rows * row_bytes;
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
          _mm512_storeu_si512(row + rows * row_bytes + s * kLineBytes,
                              round_to_pairs(rounded.left[0], rounded.left[1]).pairs);
        }
      }
    }
  }
  for (int part = 0; part < kNumberParts<T>; ++part) {
    std::memset(block + (part * rows + count) * row_bytes, 0,
                static_cast<size_t>((rows - count) * row_bytes));
  }
}

/// [key][sixteen queries] → scores[query][key], queries `stride` floats apart, groups [first, last)
/// of sixteen keys. line(g, i): the scores of key i of a group.
template <class F>
MOE_INLINE void turn_lines(int first, int last, float* scores, int64_t stride, F line) {
  for (int g = first; g < last; ++g) {
    __m512i a[16];
    MOE_UNROLL
    for (int i = 0; i < 16; ++i) a[i] = bits(line(g, i)).v;
    transpose_lanes(a);
    MOE_UNROLL
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(scores + i * stride + g * kLanes, a[i]);
  }
}
MOE_INLINE void turn_scores(const float* from, int height, int first, int last, float* scores,
                            int64_t stride) {
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
      store(scores + g * kLanes, {_mm512_shuffle_ps(ab, cd, 0x44)});
      store(scores + stride + g * kLanes, {_mm512_shuffle_ps(ab, cd, 0xee)});
      store(scores + 2 * stride + g * kLanes, {_mm512_shuffle_ps(ab_high, cd_high, 0x44)});
      store(scores + 3 * stride + g * kLanes, {_mm512_shuffle_ps(ab_high, cd_high, 0xee)});
      continue;
    }
    turn_lines(g, g + 1, scores, stride, [&](int group, int i) MOE_INLINE_LAMBDA {
      return load(from + group * kTileWeights + i * kLanes);
    });
  }
}

}  // namespace moe::MOE_ISA
