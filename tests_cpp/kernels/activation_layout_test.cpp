#include <gtest/gtest.h>

#include "moe/kernels/table.h"

namespace moe {
namespace {

class Layout : public ::testing::TestWithParam<Dot> {};
INSTANTIATE_TEST_SUITE_P(Dot, Layout,
                         ::testing::Values(Dot::kF32, Dot::kBf16, Dot::kU8S8, Dot::kBf16x2));

TEST_P(Layout, HoldsTheColumnsInAnOddNumberOfCacheLines) {
  for (int64_t cols : {1, 3, 31, 128, 511, 512, 513, 2048, 7168}) {
    const ActivationLayout layout = ActivationLayout::of(GetParam(), cols);
    EXPECT_GE(layout.words * depth_per_word(GetParam()), cols * parts_of(GetParam()));
    EXPECT_GE(layout.row_bytes, layout.words * 4);
    EXPECT_EQ(layout.row_bytes % 64, 0);
    EXPECT_EQ(layout.row_bytes / 64 % 2, 1) << "rows a power of two apart share cache sets";
  }
}

TEST(ByteLayout, SumsAndScalesFollowTheIntegersWithoutOverlap) {
  for (int64_t cols : {1, 128, 130, 512, 5000}) {
    const ActivationLayout layout = ActivationLayout::of(Dot::kU8S8, cols);
    EXPECT_GT(layout.blocks, 0);
    EXPECT_GE(layout.scales_at, layout.words * 4);
    EXPECT_GE(layout.block_sums_at, layout.scales_at + layout.blocks * 4);
    EXPECT_GE(layout.group_sums_at, layout.block_sums_at + layout.blocks * 4);
    const int64_t groups = layout.words * 4 / kSumGroup;
    EXPECT_GE(layout.short_sums_at, layout.group_sums_at + groups * 4);
    EXPECT_GE(layout.pair_sums_at, layout.short_sums_at + groups * 2);
    EXPECT_GE(layout.row_bytes, layout.pair_sums_at + groups / 2 * 2);
    EXPECT_EQ(layout.group_sums_at % 4, 0);
    EXPECT_EQ(layout.short_sums_at % 4, 0) << "sums are read in pairs";
    EXPECT_EQ(layout.pair_sums_at % 4, 0);
  }
}

}  // namespace
}  // namespace moe
