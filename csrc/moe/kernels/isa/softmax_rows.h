#pragma once
// What attention does with scores: masks, the softmax's weights under a running maximum, and how
// parts of a softmax become one.
//
// Definition    max[r] = max_j s[r][j];  w = exp(s − max);  sum[r] = Σ_j w[r][j], block by block
// with
//               a running maximum (Milakov & Gimelshein 2018; Dao et al. 2022).
// Regularities  Keys lie along the lanes. A row's sums are kept lane by lane to the end: they do
// not
//               depend on the rows beside it.

#include "moe/kernels/table.h"
#include "moe/simd/lane_sums.h"
#include "moe/simd/math.h"

namespace moe::MOE_ISA {

inline constexpr int kGroups = kKeyBlock / kLanes;  // vectors of scores per block
static_assert(kTileRows <= kLanes && kKeySegment % kWideBlock == 0);

static constexpr float kLaneIndex[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static constexpr float kMinusInf = -__builtin_inff();

template <int n>
struct Constant {
  static constexpr int kValue = n;
};

/// The first n lanes of T's, zeros behind: for widths that are no multiple of the lanes.
template <class T>
MOE_INLINE F32x16 load_padded(const T* p, int64_t n) {
  if (n >= kLanes) return load(p);
  T few[kLanes] = {};
  std::memcpy(few, p, static_cast<size_t>(n) * sizeof(T));
  return load(few);
}

/// Rows are processed in tiles of nearly equal height, at most kTileRows: whole groups of those
/// whose products are computed at once, but for the last tile.
struct RowTile {
  int64_t begin;
  int height;
};
inline constexpr int64_t kTileGroup = kTileRows % 4 == 0 ? 4 : kTileRows % 2 == 0 ? 2 : 1;
MOE_INLINE int64_t tile_count(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
MOE_INLINE RowTile tile_at(int64_t rows, int64_t tile) {
  const int64_t even = (rows + tile_count(rows) - 1) / tile_count(rows);
  const int64_t height = (even + kTileGroup - 1) / kTileGroup * kTileGroup, begin = tile * height;
  return {begin, static_cast<int>(rows - begin < height ? rows - begin : height)};
}

/// What one tile's rows (at most kLanes) make of one block, between scores and output.
struct TileWeights {
  float scores[kLanes][kKeyBlock];  // then weights
  float shrink[kLanes];             // by how much the rows' earlier sums shrink
  uint64_t counted[kLanes];         // keys with a score above -inf
};

/// s + bias, except that a bias of -inf masks: it wins over a score that is NaN or +inf.
MOE_INLINE F32x16 biased(F32x16 s, const float* bias, int64_t count) {
  const F32x16 added = load_padded(bias, count);
  return select(equal(added, set1(kMinusInf)), added, add(s, added));
}

/// A group's scores as they enter the softmax; -inf where the row does not see the key.
MOE_INLINE F32x16 masked(const AttentionCall& call, int64_t row, int64_t first_key, F32x16 s) {
  if (call.key_scales != nullptr) {
    s = mul(s, load_padded(call.key_scales + first_key, call.end - first_key));
  }
  if (call.softcap > 0.0f) {
    s = mul(set1(call.softcap), tanh(mul(s, set1(1.0f / call.softcap))));
  }
  if (call.bias != nullptr) s = biased(s, call.bias[row] + first_key, call.end - first_key);
  if (call.key_bias != nullptr) s = biased(s, call.key_bias + first_key, call.end - first_key);
  const int64_t begin = call.visible[row].begin - first_key,
                end = call.visible[row].end - first_key;
  if (begin > 0 || end < kLanes) {
    const F32x16 lane = load(kLaneIndex);
    s = select(less(lane, set1(static_cast<float>(end))), s, set1(kMinusInf));
    s = select(less(lane, set1(static_cast<float>(begin))), set1(kMinusInf), s);
  }
  return s;
}

/// A row's scores of a block as they enter the softmax: the largest of each lane, and which keys
/// count.
struct RowScores {
  F32x16 largest;
  uint64_t counted;
};
MOE_INLINE RowScores masked_row(const AttentionCall& call, int64_t row, int64_t block, int first,
                                int last, float* scores) {
  RowScores to{set1(kMinusInf), 0};
  for (int g = first; g < last; ++g) {
    float* at = scores + g * kLanes;
    const F32x16 s = masked(call, row, block + g * kLanes, load(at));
    store(at, s);
    to.largest = max(s, to.largest);
    to.counted |= static_cast<uint64_t>(0xffffu & ~to_bitmask(equal(s, set1(kMinusInf))))
                  << (g * kLanes);
  }
  return to;
}
/// The same for a whole block that the row sees, where nothing masks.
MOE_INLINE RowScores whole_row(const AttentionCall& call, int64_t row, int64_t block,
                               float* scores) {
  F32x16 s[kGroups], largest = set1(kMinusInf), smallest = set1(-kMinusInf);
  MOE_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    s[g] = load(scores + g * kLanes);
    if (call.key_scales != nullptr) {
      s[g] = mul(s[g], load(call.key_scales + block + g * kLanes));
    }
    largest = max(s[g], largest);
    smallest = min(s[g], smallest);
  }
  if (to_bitmask(equal(smallest, set1(kMinusInf))) != 0) {
    return masked_row(call, row, block, 0, kGroups, scores);
  }
  if (call.key_scales != nullptr) {
    MOE_UNROLL
    for (int g = 0; g < kGroups; ++g) store(scores + g * kLanes, s[g]);
  }
  return {largest, ~uint64_t{0}};
}

/// e^x of what is not above 0, as weights are made where nothing else is said.
struct WeightExp {
  MOE_INLINE F32x16 of(F32x16 x) { return exp_of_negative(x); }
};

/// Scores of groups [first, last) into weights times their values' scales, and their sums.
template <class E>
MOE_INLINE F32x16 weigh_scores(const AttentionCall& call, F32x16 top, int64_t block, int first,
                               int last, float* scores) {
  F32x16 sum = zero_f32();
  for (int g = first; g < last; ++g) {
    float* at = scores + g * kLanes;
    F32x16 weight = E::of(sub(load(at), top));
    sum = add(sum, weight);
    if (call.value_scales != nullptr) {
      const int64_t key = block + g * kLanes;
      weight = mul(weight, load_padded(call.value_scales + key, call.end - key));
    }
    store(at, weight);
  }
  return sum;
}

/// The rows' running maxima, raised to their block's largest scores: `top`, 0 where nothing has
/// been seen yet; by `shrink` their earlier sums are multiplied.
MOE_INLINE void raise_maxima(const AttentionCall& call, RowTile tile,
                             const F32x16 (&largest)[kLanes], float (&top)[kLanes], float* shrink) {
  max_lanes(largest, top);
  F32x16 before = load_padded(call.max + tile.begin, tile.height);
  F32x16 after = max(load(top), before);
  store_first(call.max + tile.begin, after, tile.height);
  const Mask16 fresh = equal(before, set1(kMinusInf));  // sums are 0 still
  after = select(equal(after, set1(kMinusInf)), zero_f32(), after);
  store(shrink, exp_of_negative(sub(select(fresh, after, before), after)));
  store(top, after);
}

/// Scores into weights relative to the new running maximum, times their values' scales; updates the
/// rows' max and sum. `meanwhile` is called twice for each row.
template <class E = WeightExp, class F>
[[gnu::noinline]] static void soften(const AttentionCall& call, RowTile tile, int64_t block,
                                     int first, int last, TileWeights& w, F meanwhile) noexcept {
  const bool plain = call.softcap == 0.0f && call.bias == nullptr && call.key_bias == nullptr &&
                     last - first == kGroups;
  F32x16 largest[kLanes];
  for (int r = 0; r < kLanes; ++r) largest[r] = set1(kMinusInf);
  for (int r = 0; r < tile.height; ++r) {
    meanwhile();
    const int64_t row = tile.begin + r;
    const KeyRange visible = call.visible[row];
    const bool whole = plain && visible.begin <= block && visible.end >= block + kKeyBlock;
    const RowScores scores = whole ? whole_row(call, row, block, w.scores[r])
                                   : masked_row(call, row, block, first, last, w.scores[r]);
    largest[r] = scores.largest;
    w.counted[r] = scores.counted;
  }
  float top[kLanes];
  raise_maxima(call, tile, largest, top, w.shrink);
  for (int r = 0; r < tile.height; ++r) {
    meanwhile();
    const F32x16 base = set1(top[r]);
    // A whole block's groups are independent of one another: known to be four, they overlap.
    const F32x16 sum = last - first == kGroups
                           ? weigh_scores<E>(call, base, block, 0, kGroups, w.scores[r])
                           : weigh_scores<E>(call, base, block, first, last, w.scores[r]);
    float* total = call.lane_sums + (tile.begin + r) * kLanes;
    store(total, fma(load(total), set1(w.shrink[r]), sum));
  }
}

/// Where the keys that rows [first, last) see begin and end within [begin, end).
MOE_INLINE KeyRange seen(const AttentionCall& call, int64_t first, int64_t last, int64_t begin,
                         int64_t end) {
  KeyRange range{end, begin};
  for (int64_t r = first; r < last; ++r) {
    const KeyRange row = call.visible[r];
    if (row.begin >= row.end) continue;
    if (row.begin < range.begin) range.begin = row.begin;
    if (row.end > range.end) range.end = row.end;
  }
  if (range.begin < begin) range.begin = begin;
  if (range.end > end) range.end = end;
  return range;
}

/// Rows that have seen nothing yet.
static void clear_rows(const AttentionCall& call) noexcept {
  for (int64_t r = 0; r < call.rows; ++r) {
    call.max[r] = kMinusInf;
    store(call.lane_sums + r * kLanes, zero_f32());
    std::memset(call.out + r * call.out_stride, 0, static_cast<size_t>(call.out_width) * 4);
  }
}
static void sum_rows(const AttentionCall& call) noexcept {
  for (int64_t r = 0; r < call.rows; ++r) {
    call.sum[r] = reduce_add(load(call.lane_sums + r * kLanes));
  }
}

/// exp(x) of one number, the same bits as a lane's.
MOE_INLINE float exp_one(float x) {
  float lanes[kLanes];
  store(lanes, exp(set1(x)));
  return lanes[0];
}

static void merge(SoftmaxRow& into, const SoftmaxRow& part, int64_t width) noexcept {
  const float top = part.max > into.max ? part.max : into.max;
  const float base = top == kMinusInf ? 0.0f : top;
  const float keep = exp_one(into.max - base), take = exp_one(part.max - base);
  into.max = top;
  into.sum = into.sum * keep + part.sum * take;
  const F32x16 keep_lanes = set1(keep), take_lanes = set1(take);
  for (int64_t c = 0; c < width; c += kLanes) {
    store(into.out + c, fma(load(part.out + c), take_lanes, mul(load(into.out + c), keep_lanes)));
  }
}

static void finish(const SoftmaxRow& row, const float* sink, int64_t width, float* out) noexcept {
  float top = row.max, sum = row.sum, keep = 1.0f;
  if (sink != nullptr) {
    top = *sink > top ? *sink : top;
    const float base = top == kMinusInf ? 0.0f : top;
    keep = exp_one(row.max - base);
    sum = sum * keep + exp_one(*sink - base);
  }
  const F32x16 factor = set1(sum == 0.0f ? 0.0f : keep / sum);
  for (int64_t c = 0; c < width; c += kLanes) {
    // + 0: a zero's sign would tell whether invisible keys were passed over or weighed with 0.
    const F32x16 value = add(mul(load(row.out + c), factor), zero_f32());
    if (c + kLanes <= width) {
      store(out + c, value);
    } else {
      store_first(out + c, value, static_cast<int>(width - c));
    }
  }
}

}  // namespace moe::MOE_ISA
