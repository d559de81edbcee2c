#include "moe/quant/ggml_grids.h"

#include <gtest/gtest.h>

#include <initializer_list>
#include <set>

namespace moe {
namespace {

// No point twice, and no other level than these.
template <class Points>
void check_points(const Points& grid, std::initializer_list<int> levels) {
  std::set<int> found;
  std::set<uint64_t> points;
  for (int p = 0; p < Points::kPoints; ++p) {
    points.insert(grid.points[p]);
    for (int j = 0; j < Points::kWidth; ++j) found.insert(grid.byte(p, j) - 128);
  }
  EXPECT_EQ(static_cast<int>(points.size()), Points::kPoints);
  EXPECT_EQ(found, std::set<int>(levels));
}

TEST(GgmlGrids, PointsDifferAndHaveTheLevelsOfTheirType) {
  check_points(kIq1Grid, {-8, 0, 8});
  check_points(kIq2XxsGrid, {8, 25, 43});
  check_points(kIq2XsGrid, {8, 25, 43});
  check_points(kIq2SGrid, {8, 25, 43});
  check_points(kIq3XxsGrid, {4, 12, 20, 28, 36, 44, 52, 62});
  check_points(kIq3SGrid, {1, 3, 5, 7, 9, 11, 13, 15});
}

TEST(GgmlGrids, TheFirstValueStandsLowest) {
  EXPECT_EQ(kIq2XxsGrid.points[0], 0x8888888888888888u);  // eight times 128 + 8
  EXPECT_EQ(kIq2XxsGrid.byte(1, 0), 128 + 43);
  EXPECT_EQ(kIq2XxsGrid.byte(1, 1), 128 + 8);
  EXPECT_EQ(kIq3XxsGrid.points[0], 0x84848484u);
  EXPECT_EQ(kIq3XxsGrid.byte(1, 0), 128 + 20);
}

}  // namespace
}  // namespace moe
