#pragma once
// Weights of a tile's rows over a wide block of keys, as attention's tiles multiply them.
//
// Shapes        scores [16][block] floats → in their place, of each 32 keys, sixteen words of
//               hi and sixteen of lo: numbers of keys j and j + 16 (isa/attention_values.h)
// Definition    softmax_rows.h's, block by block under a running maximum; weight = hi + lo
// Regularities  A row's sum is kept lane by lane over the groups in order.

#include "moe/kernels/isa/attention_values.h"

namespace moe::MOE_ISA {

/// What a tile's rows make of a wide block.
template <int kBlock>
struct alignas(64) WideWeights {
  static constexpr int64_t kStride = kBlock * 4;  // bytes of a row

  float scores[kTileHeight][kBlock];    // then words
  float shrink[kTileHeight];            // by how much the rows' earlier sums shrink
  KeySet<kBlock> counted[kTileHeight];  // keys with a score above -inf
};

/// e^x of what is not above 0, to 2^-22 of itself: x / ln 2 is taken apart into a whole number, by
/// adding and subtracting what leaves no room for a fraction, and a part within half of 0. NaN
/// stays.
struct TileExp {
  MOE_INLINE F32x16 of(F32x16 x) {
    const F32x16 power = mul(x, set1(1.44269504088896341f));
    const F32x16 whole = sub(add(power, set1(kWhole)), set1(kWhole));
    const F32x16 part = sub(power, whole);
    F32x16 y = set1(1.3264727e-3f);  // 2^part, the least error of degree 5 that is exact at 0
    y = fma(y, part, set1(9.671513e-3f));
    y = fma(y, part, set1(5.5507336e-2f));
    y = fma(y, part, set1(2.4022242e-1f));
    y = fma(y, part, set1(6.93147e-1f));
    y = fma(y, part, set1(1.0f));
    const __mmask16 normal = _mm512_cmp_ps_mask(power.v, set1(-125.0f).v, _CMP_NLT_UQ);
    return {_mm512_maskz_scalef_ps(normal, y.v, whole.v)};
  }

 private:
  static constexpr float kWhole = 12582912.0f;  // 1.5 * 2^23
};

/// A weight's hi and lo are what lies before the cut of these: each rounded to the nearest.
struct WeightParts {
  __m512i hi, lo;
};
MOE_INLINE WeightParts weight_parts(F32x16 weight) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i hi = _mm512_add_epi32(bits(weight).v, half);
  return {hi, _mm512_add_epi32(bits(sub(weight, from_bits({cut(hi)}))).v, half)};
}

/// Scores of 32 keys into weights and their words; their sum is added to `sum`, group by group.
MOE_INLINE void weigh_step(float* at, F32x16 base, bool has_first, bool has_second, F32x16& sum) {
  F32x16 a = zero_f32(), b = a;
  if (has_first) a = TileExp::of(sub(load(at), base));
  if (has_second) b = TileExp::of(sub(load(at + kLanes), base));
  sum = add(add(sum, a), b);
  const WeightParts parts = weight_parts(a), next = weight_parts(b);
  _mm512_store_si512(at, pair_words(parts.hi, next.hi));
  _mm512_store_si512(at + kLanes, pair_words(parts.lo, next.lo));
}

/// Scores of groups [first, last) of a block into words relative to the new running maximum;
/// updates the rows' max and lane sums. Of the steps that those groups touch, all words are
/// written. `meanwhile` is called twice for each row.
template <int kBlock, class F>
[[gnu::noinline]] static void soften_wide(const AttentionCall& call, RowTile tile, int64_t block,
                                          int first, int last, WideWeights<kBlock>& w,
                                          F meanwhile) noexcept {
  constexpr int kAll = kBlock / kLanes;
  const bool plain = call.softcap == 0.0f && call.bias == nullptr && call.key_bias == nullptr &&
                     first == 0 && last == kAll;
  F32x16 largest[kLanes];
  for (int r = 0; r < kLanes; ++r) largest[r] = set1(kMinusInf);
  for (int r = 0; r < tile.height; ++r) {
    meanwhile();
    const int64_t row = tile.begin + r;
    const KeyRange visible = call.visible[row];
    const bool whole = plain && visible.begin <= block && visible.end >= block + kBlock;
    w.counted[r] = {};
    for (int g = first / kGroups * kGroups; g < last; g += kGroups) {
      const int64_t keys = block + g * kLanes;
      float* at = w.scores[r] + g * kLanes;
      const int from = first > g ? first - g : 0, to = last - g < kGroups ? last - g : kGroups;
      const RowScores scores =
          whole ? whole_row(call, row, keys, at) : masked_row(call, row, keys, from, to, at);
      largest[r] = max(scores.largest, largest[r]);
      w.counted[r].word[g / kGroups] = scores.counted;
    }
  }
  float top[kLanes];
  raise_maxima(call, tile, largest, top, w.shrink);
  for (int r = 0; r < tile.height; ++r) {
    meanwhile();
    const F32x16 base = set1(top[r]);
    F32x16 sum = zero_f32();
    if (first == 0 && last == kAll) {
      MOE_UNROLL
      for (int g = 0; g < kAll; g += 2) {
        weigh_step(w.scores[r] + g * kLanes, base, true, true, sum);
      }
    } else {
      for (int g = first / 2 * 2; g < last; g += 2) {
        weigh_step(w.scores[r] + g * kLanes, base, g >= first, g + 1 < last, sum);
      }
    }
    float* total = call.lane_sums + (tile.begin + r) * kLanes;
    store(total, fma(load(total), set1(w.shrink[r]), sum));
  }
}

/// What a row's words say a key weighs.
template <int kBlock>
MOE_INLINE float weight_of(const WideWeights<kBlock>& w, int row, int key) {
  const bool upper = key % (2 * kLanes) >= kLanes;
  float sum = 0.0f;
  for (int part = 0; part < 2; ++part) {
    const int line = key / (2 * kLanes) * 2 + part;
    uint32_t word;
    std::memcpy(&word, w.scores[row] + line * kLanes + key % kLanes, 4);
    word = upper ? word & 0xffff0000u : word << 16;
    float number;
    std::memcpy(&number, &word, 4);
    sum += number;
  }
  return sum;
}

/// Adds to a row what tiles leave out: 0 times a damaged value would be NaN in rows that do not
/// count it. weight(j) is that of key j.
template <int kBlock, class T, class F>
static void add_damaged(const KeySet<kBlock>& damaged, const KeySet<kBlock>& counted,
                        const T* values, int64_t stride, int64_t dim, float* out,
                        F weight) noexcept {
  for (int j = 0; j < kBlock; ++j) {
    if (!damaged.has(j) || !counted.has(j)) continue;
    const F32x16 w = set1(weight(j));
    for (int64_t c = 0; c < dim; c += kLanes) {
      store(out + c, fma(w, load_padded(values + j * stride + c, dim - c), load(out + c)));
    }
  }
}

}  // namespace moe::MOE_ISA
