#include "moe/kernels/table.h"

namespace moe {

ActivationLayout ActivationLayout::of(Dot dot, int64_t cols) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  ActivationLayout layout;
  // Zeros up to a whole block of the deepest format: its last block reads past the last column.
  const int64_t padded = ceil_div(cols, kDeepestBlock) * kDeepestBlock;
  layout.blocks = padded / kScaleBlock;
  layout.words = padded / depth_per_word(dot) * parts_of(dot);
  int64_t bytes = layout.words * 4;
  if (dot == Dot::kU8S8) {
    layout.scales_at = bytes;
    layout.block_sums_at = layout.scales_at + layout.blocks * 4;
    layout.group_sums_at = layout.block_sums_at + layout.blocks * 4;
    // Longer groups' sums are added up lane by lane: from the last one on too.
    constexpr int64_t kBehind = kScaleBlock / kSumGroup - 1;
    const int64_t groups = layout.blocks * (kScaleBlock / kSumGroup);
    layout.short_sums_at = layout.group_sums_at + (groups + kBehind) * 4;
    layout.pair_sums_at = layout.short_sums_at + ceil_div(groups, 2) * 4;
    bytes = layout.pair_sums_at + groups;
  }
  layout.row_bytes = (ceil_div(bytes, 64) | 1) * 64;
  return layout;
}

}  // namespace moe
