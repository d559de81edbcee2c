#pragma once
// Scores of an indexer's heads in AMX tiles (IndexCall), over keys of 16 bits.
//
// Definition    index_scores.h's, with queries of 16 bits (isa/attention_pair_products.h): a
// product
//               is off by 2^-17 of its terms at most
// Regularities  Sixteen heads lie along the lanes: lane by lane over the heads, then over the
// lanes.
//               A key's score does not depend on the keys beside it.
// Cost          2 · heads · S · D products of two parts, three for float16 keys

#include "moe/kernels/isa/attention_pair_products.h"
#include "moe/simd/lane_sums.h"

namespace moe::MOE_ISA {

/// totals[key] += weights · max(0, scores) of a tile's heads; `heads` of them.
MOE_INLINE void weigh_heads(const float* scores, const float* weights, int64_t heads,
                            float* totals) {
  const F32x16 weight = load_padded(weights, heads);
  for (int i = 0; i < kKeyBlock * kLanes; i += kLanes) {
    store(totals + i, fma(weight, max(load(scores + i), zero_f32()), load(totals + i)));
  }
}

template <class T>
static void index_tiles(const IndexCall& call) noexcept {
  constexpr int kParts = kNumberParts<T>;
  const int64_t steps = query_steps(call.dim), tile_bytes = 2 * steps * kStepBytes;
  alignas(64) float scores[2 * kKeyTiles * kTileWeights], totals[kKeyBlock * kLanes];
  configure_tiles(kTileHeight, kTileHeight, kTileWords);
  for (int64_t block = call.begin; block < call.end; block += kKeyBlock) {
    const int64_t left = call.end - block;
    const int count = static_cast<int>(left < kKeyBlock ? left : kKeyBlock);
    const auto* rows = static_cast<const T*>(call.keys) + block * call.key_stride;
    KeyTiles keys;
    if (std::is_same_v<T, bf16> && count == kKeyBlock && call.dim % kStepColumns == 0) {
      keys = {{reinterpret_cast<const std::byte*>(rows), nullptr}, call.key_stride * 2};
    } else {
      lay_out_keys(rows, call.key_stride, count, call.dim, kKeyBlock,
                   reinterpret_cast<std::byte*>(call.key_block), keys);
    }
    std::memset(totals, 0, sizeof(totals));
    const auto* queries = reinterpret_cast<const std::byte*>(call.queries);
    for (int64_t h = 0; h < call.heads; h += kTilePair, queries += 2 * tile_bytes) {
      const int64_t heads = call.heads - h;
      if (heads > kTileHeight) {
        multiply_keys<2, kParts>(keys, queries, steps, scores, [] {});
        weigh_heads(scores + kKeyTiles * kTileWeights, call.weights + h + kTileHeight,
                    heads - kTileHeight, totals);
      } else {
        multiply_keys<1, kParts>(keys, queries, steps, scores, [] {});
      }
      weigh_heads(scores, call.weights + h, heads, totals);
    }
    alignas(64) float sums[kKeyBlock];
    for (int j = 0; j < kKeyBlock; j += kLanes) {
      F32x16 lanes[kLanes];
      MOE_UNROLL
      for (int i = 0; i < kLanes; ++i) lanes[i] = load(totals + (j + i) * kLanes);
      sum_lanes(lanes, sums + j);
    }
    std::memcpy(call.out + block, sums, static_cast<size_t>(count) * sizeof(float));
  }
  release_tiles();
}

}  // namespace moe::MOE_ISA
