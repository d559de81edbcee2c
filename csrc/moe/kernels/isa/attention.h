#pragma once
// Softmax attention of a few query rows over one segment of one head's keys (AttentionCall).
//
// Shapes        queries [rows, D], keys [S, D], values [S, Dv] → max, sum [rows], out [rows, Dv]
// Definition    s[r][j] = q[r] · k[j] + bias[r][j];  max[r] = max_j s[r][j];  w = exp(s − max)
//               sum[r] = Σ_j w[r][j];  out[r] = Σ_j w[r][j] · v[j]
//               j over the keys that row r sees, in blocks of kKeyBlock from absolute boundaries,
//               with a running maximum (Milakov & Gimelshein 2018; Dao et al. 2022).
// Regularities  Every product runs over d, every sum over j, in one fixed order, lane by lane: a
//               row's bytes do not depend on the rows beside it. Keys lie along the lanes for the
//               scores (a block is transposed once for all rows), value columns for the output.
// Cost          2 · rows · keys · (D + Dv) operations; the keys and values are read once per call.

#include "moe/kernels/table.h"
#include "moe/simd/lane_sums.h"
#include "moe/simd/math.h"

namespace moe::MOE_ISA {

inline constexpr int kGroups = kKeyBlock / kLanes;  // vectors of scores per block
static_assert(kTileRows <= kLanes && kKeySegment % kKeyBlock == 0);

static constexpr float kLaneIndex[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static constexpr float kMinusInf = -__builtin_inff();

template <int n>
struct Constant {
  static constexpr int kValue = n;
};
/// Calls f with `height`, 1 to R, as a compile-time constant.
template <int R, class F>
MOE_INLINE void with_height(int height, F f) {
  if constexpr (R > 0) {
    if (height == R) {
      f(Constant<R>{});
    } else {
      with_height<R - 1>(height, f);
    }
  }
}

/// Rows are processed in tiles of nearly equal height, at most kTileRows.
struct RowTile {
  int64_t begin;
  int height;
};
MOE_INLINE int64_t tile_count(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
MOE_INLINE RowTile tile_at(int64_t rows, int64_t tile) {
  const int64_t tiles = tile_count(rows), begin = tile * rows / tiles;
  return {begin, static_cast<int>((tile + 1) * rows / tiles - begin)};
}

/// The first n lanes of T's, zeros behind: for widths that are no multiple of the lanes.
template <class T>
MOE_INLINE F32x16 load_padded(const T* p, int64_t n) {
  if (n >= kLanes) return load(p);
  T few[kLanes] = {};
  std::memcpy(few, p, static_cast<size_t>(n) * sizeof(T));
  return load(few);
}

static void pack_queries(const QueryRows& q, int64_t stride, float* packed) noexcept {
  for (int64_t r = 0; r < q.rows; ++r) {
    float* out = packed + r * stride;
    for (int64_t d = 0; d < q.head_dim; ++d) out[d] = q.head[r][d] * q.scale;
    out += q.head_dim;
    for (int64_t d = 0; d < q.tail_dim; ++d) out[d] = q.tail[r][d] * q.scale;
    out += q.tail_dim;
    while (out < packed + (r + 1) * stride) *out++ = 0.0f;
  }
}

/// Rows as floats of whole vectors, zeros behind.
template <class T>
static void widen_rows(const T* rows, int64_t stride, int count, int64_t width, float* out,
                       int64_t out_stride) noexcept {
  for (int j = 0; j < count; ++j) {
    for (int64_t c = 0; c < width; c += kLanes) {
      store(out + j * out_stride + c, load_padded(rows + j * stride + c, width - c));
    }
  }
}

/// Brings rows into L1 by one load that walks over their lines. Memory has to be read like this:
/// the processor reads ahead for an instruction whose addresses follow one another (measured on Zen
/// 4: 30 GB/s), and hardly for several that take turns, nor for prefetch instructions (9 to 15
/// GB/s).
template <class T>
MOE_INLINE void touch_rows(const T* rows, int64_t stride, int64_t width, int count) {
  if (stride == width) {
    width *= count;
    count = 1;
  }
  for (int i = 0; i < count; ++i) {
#pragma GCC unroll 1
    for (int64_t c = 0; c < width; c += 64 / static_cast<int64_t>(sizeof(T))) {
      touch(rows + i * stride + c);
    }
  }
}

// Scores: kSumVectors dot products at a time, those of R rows with kSumVectors / R keys.
inline constexpr int kDotRows = kSumVectors == 16 ? 4 : kSumVectors == 4 ? 2 : 1;
inline constexpr int kDotKeys = kSumVectors / kDotRows;

/// s[r][j] = q[r] · keys[j] for `keys` from `first` to `last`, in steps that may pass `last` but
/// stay in the block; the rows from `count` on do not exist. dim is a multiple of the lanes.
template <int R, class T>
[[gnu::noinline]] static void score_rows(const float* q, const T* keys, int64_t stride, int count,
                                         int first, int last, int64_t dim, float* s) noexcept {
  constexpr int kKeys = kSumVectors / R;
  constexpr int kStep = kKeys < kDotKeys ? kKeys : kDotKeys;
  for (int j = first; j < last; j += kKeys) {
    F32x16 sum[kSumVectors];
    MOE_UNROLL
    for (int step = 0; step < kKeys; step += kStep) {
      const T* key[kStep];
      MOE_UNROLL
      for (int i = 0; i < kStep; ++i) {
        const int row = j + step + i < count ? j + step + i : count - 1;
        key[i] = keys + row * stride;
      }
      F32x16 part[R][kStep];
      MOE_UNROLL
      for (int r = 0; r < R; ++r) {
        MOE_UNROLL
        for (int i = 0; i < kStep; ++i) part[r][i] = zero_f32();
      }
      for (int64_t d = 0; d < dim; d += kLanes) {
        F32x16 value[kStep];
        MOE_UNROLL
        for (int i = 0; i < kStep; ++i) value[i] = load(key[i] + d);
        MOE_UNROLL
        for (int r = 0; r < R; ++r) {
          const F32x16 query = load(q + r * dim + d);
          MOE_UNROLL
          for (int i = 0; i < kStep; ++i) part[r][i] = fma(query, value[i], part[r][i]);
        }
      }
      MOE_UNROLL
      for (int r = 0; r < R; ++r) {
        MOE_UNROLL
        for (int i = 0; i < kStep; ++i) sum[r * kKeys + step + i] = part[r][i];
      }
    }
    float scores[kSumVectors];
    sum_lanes(sum, scores);
    MOE_UNROLL
    for (int r = 0; r < R; ++r) std::memcpy(s + r * kKeyBlock + j, scores + r * kKeys, 4 * kKeys);
  }
}

/// score_rows for a tile of any height. A few keys at a time for all rows: those are then in L1.
template <bool kStreamed, class T>
MOE_INLINE void score(const float* q, const T* keys, int64_t stride, int count, int first, int last,
                      int64_t dim, int height, float* s) {
  const int step = height % kDotRows == 0 ? kLanes / 2 : kLanes;
  for (int j = first; j < last; j += step) {
    if constexpr (kStreamed) {
      touch_rows(keys + j * stride, stride, dim, count - j < step ? count - j : step);
    }
    int r = 0;
    const auto rows = [&](auto number) MOE_INLINE_LAMBDA {
      constexpr int R = decltype(number)::kValue;
      for (; r + R <= height; r += R) {
        score_rows<R>(q + r * dim, keys, stride, count, j, j + step, dim, s + r * kKeyBlock);
      }
    };
    if constexpr (kDotRows >= 4) rows(Constant<4>{});
    if constexpr (kDotRows >= 2) rows(Constant<2>{});
    rows(Constant<1>{});
  }
}

/// out[r][0 .. 16 P) = out[r] · shrink[r] + Σ_{j in [begin, end)} w[r][j] · values[j][0 .. 16 P)
template <int R, int P, class T>
[[gnu::noinline]] static void weigh_tile(const float* w, const T* values, int64_t stride, int begin,
                                         int end, const float* shrink, float* out,
                                         int64_t out_stride) noexcept {
  F32x16 sum[R][P];
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    MOE_UNROLL
    for (int p = 0; p < P; ++p) {
      sum[r][p] = mul(load(out + r * out_stride + p * kLanes), set1(shrink[r]));
    }
  }
  for (int j = begin; j < end; ++j) {
    F32x16 value[P];
    MOE_UNROLL
    for (int p = 0; p < P; ++p) {
      value[p] = load(values + j * stride + p * kLanes);
    }
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      const F32x16 weight = set1(w[r * kKeyBlock + j]);
      MOE_UNROLL
      for (int p = 0; p < P; ++p) sum[r][p] = fma(weight, value[p], sum[r][p]);
    }
  }
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    MOE_UNROLL
    for (int p = 0; p < P; ++p) store(out + r * out_stride + p * kLanes, sum[r][p]);
  }
}

/// weigh_tile for one row that leaves keys out of the middle: only those of `keys` are touched.
template <class T>
static void weigh_keys(uint64_t keys, const float* w, const T* values, int64_t stride,
                       int64_t width, float shrink, float* out) noexcept {
  for (int64_t c = 0; c < width; c += kLanes) {
    F32x16 sum = mul(load(out + c), set1(shrink));
    for (uint64_t rest = keys; rest != 0; rest &= rest - 1) {
      const int j = __builtin_ctzll(rest);
      sum = fma(set1(w[j]), load(values + j * stride + c), sum);
    }
    store(out + c, sum);
  }
}

/// What one tile's rows make of one block, between scores and output.
struct TileWeights {
  float scores[kTileRows][kKeyBlock];  // then weights
  float shrink[kLanes];                // by how much the rows' earlier sums shrink
  uint64_t counted[kTileRows];         // keys with a score above -inf
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

/// Scores into weights relative to the new running maximum, times their values' scales; updates the
/// rows' max and sum.
[[gnu::noinline]] static void soften(const AttentionCall& call, RowTile tile, int64_t block,
                                     int first, int last, TileWeights& w) noexcept {
  float before[kLanes] = {}, after[kLanes] = {};
  for (int r = 0; r < tile.height; ++r) {
    const int64_t row = tile.begin + r;
    F32x16 largest = set1(kMinusInf);
    uint64_t counted = 0;
    for (int g = first; g < last; ++g) {
      float* at = w.scores[r] + g * kLanes;
      const F32x16 s = masked(call, row, block + g * kLanes, load(at));
      store(at, s);
      largest = max(s, largest);
      counted |= static_cast<uint64_t>(0xffffu & ~to_bitmask(equal(s, set1(kMinusInf))))
                 << (g * kLanes);
    }
    const float top = reduce_max(largest);
    before[r] = call.max[row];
    after[r] = top > before[r] ? top : before[r];
    call.max[row] = after[r];
    if (after[r] == kMinusInf) before[r] = after[r] = 0.0f;  // nothing seen yet
    w.counted[r] = counted;
  }
  store(w.shrink, exp(sub(load(before), load(after))));
  for (int r = 0; r < tile.height; ++r) {
    const F32x16 top = set1(after[r]);
    F32x16 sum = zero_f32();
    for (int g = first; g < last; ++g) {
      float* at = w.scores[r] + g * kLanes;
      F32x16 weight = exp(sub(load(at), top));
      sum = add(sum, weight);
      if (call.value_scales != nullptr) {
        const int64_t key = block + g * kLanes;
        weight = mul(weight, load_padded(call.value_scales + key, call.end - key));
      }
      store(at, weight);
    }
    float* total = call.lane_sums + (tile.begin + r) * kLanes;
    store(total, fma(load(total), set1(w.shrink[r]), sum));
  }
}

template <class T>
static bool all_finite(const T* values, int64_t stride, int count, int64_t width) noexcept {
  F32x16 zeros = zero_f32();  // NaN where something was not finite
  for (int j = 0; j < count; ++j) {
    for (int64_t c = 0; c < width; c += kLanes) {
      zeros = fma(load_padded(values + j * stride + c, width - c), zero_f32(), zeros);
    }
  }
  return to_bitmask(is_nan(zeros)) == 0;
}

/// How many vectors of value columns a tile of R rows takes at once: what the registers hold.
template <int R>
constexpr int wide_columns() {
  return kTilePanels == 2 ? (R <= 2 ? 8 : R <= 5 ? 4 : 2) : (kTileRows > 2 && R <= 2 ? 2 : 1);
}

/// weigh_tile over columns [c, width), P vectors at a time, then fewer.
template <int R, int P, class T>
MOE_INLINE void weigh_columns(const float* w, const T* values, int64_t stride, int begin, int end,
                              const float* shrink, float* out, int64_t c, int64_t width) {
  for (; c + P * kLanes <= width; c += P * kLanes) {
    weigh_tile<R, P>(w, values + c, stride, begin, end, shrink, out + c, width);
  }
  if constexpr (P > 1) {
    weigh_columns<R, P / 2>(w, values, stride, begin, end, shrink, out, c, width);
  }
}

/// All rows of a tile at once: for values that lie in a cache.
MOE_INLINE void weigh_cached(int height, const TileWeights& w, const float* values, int64_t stride,
                             int begin, int end, float* out, int64_t width) {
  with_height<kTileRows>(height, [&](auto number) MOE_INLINE_LAMBDA {
    constexpr int R = decltype(number)::kValue;
    weigh_columns<R, wide_columns<R>()>(w.scores[0], values, stride, begin, end, w.shrink, out, 0,
                                        width);
  });
}

/// For values that come from memory: whole rows of a few keys, one or two query rows at a time, so
/// that memory is read in the order of its addresses.
template <class T>
MOE_INLINE void weigh_streamed(int height, const TileWeights& w, const T* values, int64_t stride,
                               int begin, int end, float* out, int64_t width) {
  static constexpr float kKeep[2] = {1.0f, 1.0f};
  for (int j = begin; j < end; j = (j / kLanes + 1) * kLanes) {
    const int stop = end < (j / kLanes + 1) * kLanes ? end : (j / kLanes + 1) * kLanes;
    int r = 0;
    const auto rows = [&](auto number) MOE_INLINE_LAMBDA {
      constexpr int R = decltype(number)::kValue;
      for (; r + R <= height; r += R) {
        weigh_columns<R, wide_columns<R>()>(w.scores[r], values, stride, j, stop,
                                            j == begin ? w.shrink + r : kKeep, out + r * width, 0,
                                            width);
      }
    };
    rows(Constant<2>{});
    rows(Constant<1>{});
  }
}

/// Adds a block's weighted values to a tile's output rows. `finite` says so of all the values.
template <bool kCached, class T>
MOE_INLINE void weigh(const AttentionCall& call, RowTile tile, const TileWeights& w,
                      const T* values, int64_t stride, bool finite) {
  uint64_t any = 0, every = ~uint64_t{0};
  for (int r = 0; r < tile.height; ++r) {
    any |= w.counted[r];
    every &= w.counted[r];
  }
  if (any == 0) return;
  float* out = call.out + tile.begin * call.out_stride;
  const int begin = __builtin_ctzll(any), end = kKeyBlock - __builtin_clzll(any);
  const uint64_t whole = (~uint64_t{0} >> (kKeyBlock - (end - begin))) << begin;
  // A weight of 0 times a value that is not finite would be NaN: such a block goes row by row.
  if (!finite && every != whole) {
    for (int r = 0; r < tile.height; ++r) {
      weigh_keys(w.counted[r], w.scores[r], values, stride, call.out_stride, w.shrink[r],
                 out + r * call.out_stride);
    }
  } else if constexpr (kCached) {
    weigh_cached(tile.height, w, values, stride, begin, end, out, call.out_stride);
  } else {
    weigh_streamed(tile.height, w, values, stride, begin, end, out, call.out_stride);
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

template <class T>
static void attend(const AttentionCall& call) noexcept {
  for (int64_t r = 0; r < call.rows; ++r) {
    call.max[r] = kMinusInf;
    store(call.lane_sums + r * kLanes, zero_f32());
    std::memset(call.out + r * call.out_stride, 0, static_cast<size_t>(call.out_stride) * 4);
  }
  const int64_t tiles = tile_count(call.rows);
  // Few rows read keys and values where they lie; more share a block widened once.
  const bool widen_keys = tiles > 1 || call.key_dim != call.query_stride;
  const bool widen_values = tiles > 1 || call.value_dim != call.out_stride;
  const KeyRange all = seen(call, 0, call.rows, call.begin, call.end);
  for (int64_t block = all.begin / kKeyBlock * kKeyBlock; block < all.end; block += kKeyBlock) {
    const int64_t block_end = block + kKeyBlock < call.end ? block + kKeyBlock : call.end;
    const KeyRange used = seen(call, 0, call.rows, block, block_end);
    if (used.begin >= used.end) continue;
    const auto* keys = static_cast<const T*>(call.keys) + block * call.key_stride;
    const auto* values = static_cast<const T*>(call.values) + block * call.value_stride;
    const int count = static_cast<int>(block_end - block);
    if (widen_keys) {
      widen_rows(keys, call.key_stride, count, call.key_dim, call.key_block, call.query_stride);
    }
    if (widen_values) {
      widen_rows(values, call.value_stride, count, call.value_dim, call.value_block,
                 call.out_stride);
    }
    bool uniform = call.bias == nullptr && call.key_bias == nullptr;
    for (int64_t r = 0; r < call.rows && uniform; ++r) {
      uniform = call.visible[r].begin <= used.begin && call.visible[r].end >= used.end;
    }
    const bool finite =
        !uniform && (call.value_scales != nullptr
                         ? all_finite(call.value_scales + block, count, 1, count)
                         : all_finite(values, call.value_stride, count, call.value_dim));
    for (int64_t t = 0; t < tiles; ++t) {
      const RowTile tile = tile_at(call.rows, t);
      const KeyRange tile_used =
          seen(call, tile.begin, tile.begin + tile.height, used.begin, used.end);
      if (tile_used.begin >= tile_used.end) continue;
      const int first = static_cast<int>((tile_used.begin - block) / kLanes);
      const int last = static_cast<int>((tile_used.end - block + kLanes - 1) / kLanes);
      TileWeights w;
      const float* q = call.queries + tile.begin * call.query_stride;
      if (widen_keys) {
        score<false>(q, call.key_block, call.query_stride, count, first * kLanes, last * kLanes,
                     call.query_stride, tile.height, w.scores[0]);
      } else {
        score<true>(q, keys, call.key_stride, count, first * kLanes, last * kLanes,
                    call.query_stride, tile.height, w.scores[0]);
      }
      soften(call, tile, block, first, last, w);
      if (widen_values) {
        weigh<true>(call, tile, w, call.value_block, call.out_stride, finite);
      } else {
        weigh<false>(call, tile, w, values, call.value_stride, finite);
      }
    }
  }
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
