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

#include "moe/kernels/isa/key_scores.h"
#include "moe/kernels/isa/weighed_values.h"

namespace moe::MOE_ISA {

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

/// What is read after a block's keys and after its values, where both are read in place: its
/// values and the next keys; a half each of the next rows where values are their first columns
/// (latent attention).
template <class T>
MOE_INLINE void following_rows(const AttentionCall& call, const T* keys, const T* values, bool last,
                               NextRows (&next)[2]) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(T));
  const int64_t key_stride = call.key_stride * kBytes, key_bytes = call.key_dim * kBytes;
  const auto* first = reinterpret_cast<const std::byte*>(keys);
  const auto* second = reinterpret_cast<const std::byte*>(values);
  const std::byte* block =
      last ? static_cast<const std::byte*>(call.next_keys) : first + kKeyBlock * key_stride;
  if (second >= first && second < first + key_bytes) {
    if (block == nullptr) return;
    const int64_t half = key_bytes / 2 / 64 * 64;
    next[0] = {block, key_stride, half};
    next[1] = {block + half, key_stride, key_bytes - half};
  } else {
    next[0] = {second, call.value_stride * kBytes, call.value_dim * kBytes};
    if (block != nullptr) next[1] = {block, key_stride, key_bytes};
  }
}

/// Which of a key's columns is the value's first, if values are whole vectors of keys' columns
/// (latent attention); else -1.
template <class T>
MOE_INLINE int64_t value_column_of(const AttentionCall& call) {
  const auto* keys = static_cast<const T*>(call.keys);
  const auto* values = static_cast<const T*>(call.values);
  const bool within = values >= keys && values + call.value_dim <= keys + call.key_dim;
  return within && call.value_stride == call.key_stride && call.value_dim == call.out_width
             ? values - keys
             : -1;
}

template <class T>
static void attend(const AttentionCall& call) noexcept {
  clear_rows(call);
  const int64_t tiles = tile_count(call.rows);
  // Few rows read keys and values where they lie; more share a block widened once, unless they are
  // floats one behind the other already.
  const bool dense = call.key_stride == call.key_dim && call.value_stride == call.value_dim;
  const bool many = tiles > 1 && !(std::is_same_v<T, float> && (dense || tiles == 2));
  const bool widen_keys = many || call.key_dim != call.query_stride;
  const bool widen_values = many || call.value_dim != call.out_width;
  const int64_t value_column = widen_keys && widen_values ? value_column_of<T>(call) : -1;
  const KeyRange all = seen(call, 0, call.rows, call.begin, call.end);
  for (int64_t block = all.begin / kKeyBlock * kKeyBlock; block < all.end; block += kKeyBlock) {
    const int64_t block_end = block + kKeyBlock < call.end ? block + kKeyBlock : call.end;
    const KeyRange used = seen(call, 0, call.rows, block, block_end);
    if (used.begin >= used.end) continue;
    const auto* keys = static_cast<const T*>(call.keys) + block * call.key_stride;
    const auto* values = static_cast<const T*>(call.values) + block * call.value_stride;
    const int count = static_cast<int>(block_end - block);
    NextRows next[2];
    if (!many) following_rows(call, keys, values, block + kKeyBlock >= all.end, next);
    if (widen_keys) {
      widen_rows(keys, call.key_stride, count, call.key_dim, call.key_block, call.query_stride);
    }
    const float* wide = value_column < 0 ? call.value_block : call.key_block + value_column;
    const int64_t wide_stride = value_column < 0 ? call.out_width : call.query_stride;
    if (widen_values && value_column < 0) {
      widen_rows(values, call.value_stride, count, call.value_dim, call.value_block,
                 call.out_width);
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
      } else if (t == 0) {
        score<true>(q, keys, call.key_stride, count, first * kLanes, last * kLanes,
                    call.query_stride, tile.height, w.scores[0], next[0]);
      } else {
        score<false>(q, keys, call.key_stride, count, first * kLanes, last * kLanes,
                     call.query_stride, tile.height, w.scores[0]);
      }
      soften(call, tile, block, first, last, w, [] {});
      if (widen_values) {
        weigh(call, tile, w, wide, wide_stride, finite);
      } else {
        weigh(call, tile, w, values, call.value_stride, finite, t == 0 ? next[1] : NextRows{});
      }
    }
  }
  sum_rows(call);
}

}  // namespace moe::MOE_ISA
