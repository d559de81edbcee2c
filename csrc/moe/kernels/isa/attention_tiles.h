#pragma once
// Attention in AMX tiles, block by block: attention_pairs.h for keys and values of 16 bits,
// attention_bytes.h for those of 8.
//
// Definition    attention.h's, with queries and weights of 16 bits
// Regularities  A tile's element is the sum over its own row and column, in one order, whatever is
//               beside it: tiles multiply every number of rows.
// Cost          A block of keys and values is read and laid out once for all rows of a call; the
//               next block is requested meanwhile.

#include "moe/kernels/isa/attention_bytes.h"
#include "moe/kernels/isa/attention_few_pairs.h"
#include "moe/kernels/isa/attention_pairs.h"

namespace moe::MOE_ISA {

/// The blocks of a call in P's tiles: P::kRows rows at a time.
template <class P>
static void attend_blocks(const AttentionCall& call, P& tiles) noexcept {
  using T = typename P::Number;
  clear_rows(call);
  configure_tiles(kTileHeight, kTileHeight, kTileWords);
  const KeyRange all = seen(call, 0, call.rows, call.begin, call.end);
  for (int64_t block = all.begin / P::kBlock * P::kBlock; block < all.end; block += P::kBlock) {
    const int64_t end = block + P::kBlock < call.end ? block + P::kBlock : call.end;
    const KeyRange used = seen(call, 0, call.rows, block, end);
    if (used.begin >= used.end) continue;
    const auto* keys = static_cast<const T*>(call.keys) + block * call.key_stride;
    const auto* values = static_cast<const T*>(call.values) + block * call.value_stride;
    const bool ends = end >= all.end;
    const auto* next_keys =
        ends ? static_cast<const T*>(call.next_keys) : keys + P::kBlock * call.key_stride;
    const auto* next_values =
        ends ? static_cast<const T*>(call.next_values) : values + P::kBlock * call.value_stride;
    tiles.open(keys, values, static_cast<int>(end - block),
               requests_for(call, next_keys, next_values, P::kBlock, tiles.parts()));
    for (int64_t row = 0; row < call.rows; row += P::kRows) {
      const int64_t height = call.rows - row < P::kRows ? call.rows - row : P::kRows;
      const KeyRange seen_here = seen(call, row, row + height, used.begin, used.end);
      if (seen_here.begin >= seen_here.end) continue;
      tiles.attend(row, static_cast<int>(height), block,
                   static_cast<int>((seen_here.begin - block) / kLanes),
                   static_cast<int>((seen_here.end - block + kLanes - 1) / kLanes));
    }
  }
  release_tiles();
}

template <class P>
static void attend_tiles(const AttentionCall& call) noexcept {
  P tiles(call);
  attend_blocks(call, tiles);
  if constexpr (requires { tiles.close(); }) {
    while (!tiles.close()) attend_blocks(call, tiles);
  }
  sum_rows(call);
}

}  // namespace moe::MOE_ISA
