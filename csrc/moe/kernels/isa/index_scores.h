#pragma once
// Scores of an indexer's heads against its keys (IndexCall).
//
// Shapes        queries [heads, D], weights [heads], keys [S, D] → out [S]
// Definition    out[j] = Σ_h weights[h] · max(0, queries[h] · keys[j])
// Regularities  One set of keys for all heads; D is 128 in what is published. A key's score does
//               not depend on the keys beside it: heads are added in their order.
// Cost          2 · heads · S · D operations; the keys are read once.

#include "moe/kernels/isa/attention.h"

namespace moe::MOE_ISA {

template <class T>
static void index_scores(const IndexCall& call) noexcept {
  for (int64_t block = call.begin; block < call.end; block += kKeyBlock) {
    const int64_t left = call.end - block;
    const int count = static_cast<int>(left < kKeyBlock ? left : kKeyBlock);
    const auto* keys = static_cast<const T*>(call.keys) + block * call.key_stride;
    widen_rows(keys, call.key_stride, count, call.dim, call.key_block, call.query_stride);
    F32x16 total[kGroups];
    for (int g = 0; g < kGroups; ++g) total[g] = zero_f32();
    for (int64_t t = 0; t < tile_count(call.heads); ++t) {
      const RowTile tile = tile_at(call.heads, t);
      float scores[kTileRows * kKeyBlock] = {};
      score<false>(call.queries + tile.begin * call.query_stride, call.key_block, call.query_stride,
                   count, 0, count, call.query_stride, tile.height, scores);
      for (int r = 0; r < tile.height; ++r) {
        const F32x16 weight = set1(call.weights[tile.begin + r]);
        for (int g = 0; g < kGroups; ++g) {
          const F32x16 score = load(scores + r * kKeyBlock + g * kLanes);
          total[g] = fma(weight, max(score, zero_f32()), total[g]);
        }
      }
    }
    float sums[kKeyBlock];
    for (int g = 0; g < kGroups; ++g) store(sums + g * kLanes, total[g]);
    std::memcpy(call.out + block, sums, static_cast<size_t>(count) * sizeof(float));
  }
}

}  // namespace moe::MOE_ISA
