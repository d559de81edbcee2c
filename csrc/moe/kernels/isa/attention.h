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
#include "moe/simd/math.h"
#include "moe/simd/transpose.h"

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

static void pack_queries(const QueryRows& q, float* packed) noexcept {
  const int64_t dim = q.head_dim + q.tail_dim;
  for (int64_t t = 0; t < tile_count(q.rows); ++t) {
    const RowTile tile = tile_at(q.rows, t);
    for (int r = 0; r < tile.height; ++r) {
      float* out = packed + t * dim * kTileRows + r;
      const float* head = q.head[tile.begin + r];
      for (int64_t d = 0; d < q.head_dim; ++d) out[d * kTileRows] = head[d] * q.scale;
      if (q.tail_dim == 0) continue;
      const float* tail = q.tail[tile.begin + r];
      out += q.head_dim * kTileRows;
      for (int64_t d = 0; d < q.tail_dim; ++d) out[d * kTileRows] = tail[d] * q.scale;
    }
  }
}

/// The first n lanes of T's, zeros behind: for widths that are no multiple of the lanes.
template <class T>
MOE_INLINE F32x16 load_padded(const T* p, int64_t n) {
  if (n >= kLanes) return load(p);
  T few[kLanes] = {};
  std::memcpy(few, p, static_cast<size_t>(n) * sizeof(T));
  return load(few);
}

/// Sixteen keys' rows into out[d][0..15] (kKeyBlock apart); rows from `count` on are zeros.
template <class T>
[[gnu::noinline]] static void transpose_keys(const T* keys, int64_t stride, int count, int64_t dim,
                                             float* out) noexcept {
  for (int64_t d = 0; d < dim; d += kLanes) {
    F32x16 rows[kLanes];
    if (count >= kLanes && d + kLanes <= dim) {
      MOE_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        prefetch(keys + (i + kLanes) * stride + d);
        rows[i] = load(keys + i * stride + d);
      }
    } else {
      for (int i = 0; i < kLanes; ++i) {
        rows[i] = i < count ? load_padded(keys + i * stride + d, dim - d) : zero_f32();
      }
    }
    transpose(rows);
    const int64_t last = dim - d < kLanes ? dim - d : kLanes;
    for (int64_t i = 0; i < last; ++i) store(out + (d + i) * kKeyBlock, rows[i]);
  }
}

/// s[r][0 .. 16 P) = Σ_d q[d][r] · keys[d][0 .. 16 P)
template <int R, int P>
[[gnu::noinline]] static void score_tile(const float* q, const float* keys, int64_t dim,
                                         float* s) noexcept {
  F32x16 sum[R][P];
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    MOE_UNROLL
    for (int p = 0; p < P; ++p) sum[r][p] = zero_f32();
  }
  for (int64_t d = 0; d < dim; ++d) {
    F32x16 key[P];
    MOE_UNROLL
    for (int p = 0; p < P; ++p) key[p] = load(keys + d * kKeyBlock + p * kLanes);
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      const F32x16 value = set1(q[d * kTileRows + r]);
      MOE_UNROLL
      for (int p = 0; p < P; ++p) sum[r][p] = fma(value, key[p], sum[r][p]);
    }
  }
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    MOE_UNROLL
    for (int p = 0; p < P; ++p) store(s + r * kKeyBlock + p * kLanes, sum[r][p]);
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
    for (int p = 0; p < P; ++p) value[p] = load(values + j * stride + p * kLanes);
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

/// Scores into weights relative to the new running maximum; updates the rows' max and sum.
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
      const F32x16 weight = exp(sub(load(at), top));
      store(at, weight);
      sum = add(sum, weight);
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

/// A block's values as floats in rows of whole vectors.
template <class T>
static void widen_values(const T* values, int64_t stride, int count, int64_t width, float* out,
                         int64_t out_stride) noexcept {
  for (int j = 0; j < count; ++j) {
    for (int64_t c = 0; c < width; c += kLanes) {
      store(out + j * out_stride + c, load_padded(values + j * stride + c, width - c));
    }
  }
}

/// Adds a block's weighted values to a tile's output rows. `finite` says so of all the values.
template <class T>
MOE_INLINE void weigh(const AttentionCall& call, RowTile tile, const TileWeights& w,
                      const T* values, int64_t stride, bool finite) {
  uint64_t any = 0, every = ~uint64_t{0};
  for (int r = 0; r < tile.height; ++r) {
    any |= w.counted[r];
    every &= w.counted[r];
  }
  float* out = call.out + tile.begin * call.out_stride;
  const int begin = any == 0 ? 0 : __builtin_ctzll(any);
  const int end = any == 0 ? 0 : kKeyBlock - __builtin_clzll(any);
  const uint64_t whole = any == 0 ? 0 : (~uint64_t{0} >> (kKeyBlock - (end - begin))) << begin;
  // A weight of 0 times a value that is not finite would be NaN: such a block goes row by row.
  if (!finite && every != whole) {
    for (int r = 0; r < tile.height; ++r) {
      weigh_keys(w.counted[r], w.scores[r], values, stride, call.out_stride, w.shrink[r],
                 out + r * call.out_stride);
    }
    return;
  }
  with_height<kTileRows>(tile.height, [&](auto height) MOE_INLINE_LAMBDA {
    constexpr int R = decltype(height)::kValue;
    int64_t c = 0;
    for (; c + kTilePanels * kLanes <= call.out_stride; c += kTilePanels * kLanes) {
      weigh_tile<R, kTilePanels>(w.scores[0], values + c, stride, begin, end, w.shrink, out + c,
                                 call.out_stride);
    }
    for (; c < call.out_stride; c += kLanes) {
      weigh_tile<R, 1>(w.scores[0], values + c, stride, begin, end, w.shrink, out + c,
                       call.out_stride);
    }
  });
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
  // One tile reads the values where they lie; several share a block widened once.
  const bool widen = tiles > 1 || call.value_dim % kLanes != 0;
  const KeyRange all = seen(call, 0, call.rows, call.begin, call.end);
  for (int64_t block = all.begin / kKeyBlock * kKeyBlock; block < all.end; block += kKeyBlock) {
    const int64_t block_end = block + kKeyBlock < call.end ? block + kKeyBlock : call.end;
    const KeyRange used = seen(call, 0, call.rows, block, block_end);
    if (used.begin >= used.end) continue;
    const auto* keys = static_cast<const T*>(call.keys) + block * call.key_stride;
    const auto* values = static_cast<const T*>(call.values) + block * call.value_stride;
    const int count = static_cast<int>(block_end - block);
    for (auto g = (used.begin - block) / kLanes; g * kLanes < used.end - block; ++g) {
      transpose_keys(keys + g * kLanes * call.key_stride, call.key_stride,
                     count - static_cast<int>(g) * kLanes, call.key_dim,
                     call.key_block + g * kLanes);
    }
    if (widen) {
      widen_values(values, call.value_stride, count, call.value_dim, call.value_block,
                   call.out_stride);
    }
    bool uniform = call.bias == nullptr && call.key_bias == nullptr;
    for (int64_t r = 0; r < call.rows && uniform; ++r) {
      uniform = call.visible[r].begin <= used.begin && call.visible[r].end >= used.end;
    }
    const bool finite = !uniform && all_finite(values, call.value_stride, count, call.value_dim);
    for (int64_t t = 0; t < tiles; ++t) {
      const RowTile tile = tile_at(call.rows, t);
      const KeyRange tile_used =
          seen(call, tile.begin, tile.begin + tile.height, used.begin, used.end);
      if (tile_used.begin >= tile_used.end) continue;
      const int first = static_cast<int>((tile_used.begin - block) / kLanes);
      const int last = static_cast<int>((tile_used.end - block + kLanes - 1) / kLanes);
      TileWeights w;
      const float* q = call.queries + t * call.key_dim * kTileRows;
      with_height<kTileRows>(tile.height, [&](auto height) MOE_INLINE_LAMBDA {
        constexpr int R = decltype(height)::kValue;
        int g = first;
        for (; g + kTilePanels <= last; g += kTilePanels) {
          score_tile<R, kTilePanels>(q, call.key_block + g * kLanes, call.key_dim,
                                     w.scores[0] + g * kLanes);
        }
        for (; g < last; ++g) {
          score_tile<R, 1>(q, call.key_block + g * kLanes, call.key_dim, w.scores[0] + g * kLanes);
        }
      });
      soften(call, tile, block, first, last, w);
      if (widen) {
        weigh(call, tile, w, call.value_block, call.out_stride, finite);
      } else {
        weigh(call, tile, w, values, call.value_stride, finite);
      }
    }
  }
  for (int64_t r = 0; r < call.rows; ++r)
    call.sum[r] = reduce_add(load(call.lane_sums + r * kLanes));
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

static constexpr AttentionKernels kAttentionKernels = {
    &pack_queries, {&attend<float>, &attend<bf16>, &attend<f16>}, &merge, &finish, kTileRows};

}  // namespace moe::MOE_ISA
