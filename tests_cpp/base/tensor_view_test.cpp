#include "moe/base/tensor_view.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

TEST(MatrixView, RowsAreAStrideApart) {
  float values[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  const MatrixView<float> whole(values, 3, 4);
  EXPECT_EQ(whole.stride, 4);
  EXPECT_EQ(whole.row(2)[1], 9.0f);
  const MatrixView<float> part(values + 1, 3, 2, 4);
  EXPECT_EQ(part.row(1)[0], 5.0f);
  part.row(2)[1] = -1.0f;
  EXPECT_EQ(values[10], -1.0f);
}

TEST(MatrixView, ReadsWhereWritingIsPossibleAndNotTheOtherWay) {
  static_assert(std::is_convertible_v<MatrixView<float>, MatrixView<const float>>);
  static_assert(!std::is_convertible_v<MatrixView<const float>, MatrixView<float>>);
  float value = 3.0f;
  const MatrixView<const float> view = MatrixView<float>(&value, 1, 1);
  EXPECT_EQ(view.row(0), &value);
}

}  // namespace
}  // namespace moe
