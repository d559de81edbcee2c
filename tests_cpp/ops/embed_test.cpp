#include "moe/ops/embed.h"

#include <gtest/gtest.h>

#include "moe/base/check.h"
#include "moe/base/half.h"
#include "support/isas.h"
#include "support/reference.h"

namespace moe {
namespace {

class Embed : public testing::EveryIsa {};
MOE_EVERY_ISA(Embed);

TEST_P(Embed, GathersAndWidensRowsExactly) {
  for (const int64_t hidden : {1, 15, 16, 33, 72}) {
    const auto values = testing::normal(5 * hidden, 1);
    std::vector<bf16> narrow;
    std::vector<f16> half;
    for (const float v : values) {
      narrow.push_back(to_bf16(v));
      half.push_back(to_f16(v));
    }
    const std::vector<int64_t> ids = {4, 0, 0, 3};
    std::vector<float> f32(4 * hidden), from_bf16(4 * hidden), from_f16(4 * hidden);
    embed(values.data(), DType::kF32, 5, hidden, ids.data(), 4, f32.data());
    embed(narrow.data(), DType::kBf16, 5, hidden, ids.data(), 4, from_bf16.data());
    embed(half.data(), DType::kF16, 5, hidden, ids.data(), 4, from_f16.data());
    for (int64_t i = 0; i < 4 * hidden; ++i) {
      const int64_t at = ids[i / hidden] * hidden + i % hidden;
      ASSERT_EQ(values[at], f32[i]);
      ASSERT_EQ(to_float(narrow[at]), from_bf16[i]);
      ASSERT_EQ(to_float(half[at]), from_f16[i]);
    }
  }
}

TEST_P(Embed, NamesThePositionOfAWrongId) {
  const std::vector<float> table(12);
  std::vector<float> out(12);
  for (const int64_t wrong : {int64_t{-1}, int64_t{3}, INT64_MAX}) {
    const std::vector<int64_t> ids = {0, wrong};
    try {
      embed(table.data(), DType::kF32, 3, 4, ids.data(), 2, out.data());
      FAIL();
    } catch (const ValueError& e) {
      EXPECT_EQ("[embed] the id at position 1 is " + std::to_string(wrong) + "; 0 to 2 is required",
                std::string(e.what()));
    }
  }
}

}  // namespace
}  // namespace moe
