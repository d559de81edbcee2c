#include "moe/base/check.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

TEST(Check, SaysWhatWasGivenAndWhatIsRequired) {
  const int cols = 64, expected = 128;
  try {
    MOE_CHECK(cols == expected, "[matmul] x has ", cols, " columns; the weight expects ", expected);
    FAIL() << "64 passed for 128";
  } catch (const ValueError& error) {
    EXPECT_STREQ(error.what(), "[matmul] x has 64 columns; the weight expects 128");
  }
}

TEST(Check, BuildsNoMessageWhereAllIsWell) {
  bool built = false;
  const auto text = [&] {
    built = true;
    return "";
  };
  EXPECT_NO_THROW(MOE_CHECK(true, text()));
  EXPECT_FALSE(built);
}

}  // namespace
}  // namespace moe
