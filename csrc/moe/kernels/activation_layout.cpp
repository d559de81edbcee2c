#include "moe/kernels/table.h"

namespace moe {

ActivationLayout ActivationLayout::of(Dot dot, int64_t cols) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  ActivationLayout layout;
  layout.words = ceil_div(cols, depth_per_word(dot));
  layout.blocks = ceil_div(cols, kDepthBlock);
  int64_t bytes = layout.words * 4;
  if (dot == Dot::kU8S8) {
    // Whole groups of zeros: a format whose block is deeper than a word reads past the last column.
    layout.words = ceil_div(cols, kDepthBlock) * (kDepthBlock / 4);
    bytes = layout.words * 4;
    layout.scales_at = bytes;
    layout.block_sums_at = layout.scales_at + layout.blocks * 4;
    layout.group_sums_at = layout.block_sums_at + layout.blocks * 4;
    bytes = layout.group_sums_at + layout.blocks * (kDepthBlock / kSumGroup) * 4;
  }
  const int64_t lines = ceil_div(bytes, 64);
  layout.row_bytes = (lines | 1) * 64;
  return layout;
}

}  // namespace moe
