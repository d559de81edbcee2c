#include "moe/ops/plan.h"

#include <gtest/gtest.h>

#include "moe/base/check.h"

namespace moe {
namespace {

TEST(Plan, SortsByExpertAndKeepsTheOrderOfTokensAndSlots) {
  const std::vector<int32_t> experts = {2, 0, -1, 2, 0, 2};  // three tokens, two slots
  Plan plan;
  make_plan(experts.data(), 3, 2, 4, &plan);
  EXPECT_EQ((std::vector<int64_t>{0, 2, 2, 5, 5}), plan.offsets);
  EXPECT_EQ((std::vector<int32_t>{0, 2, 0, 1, 2}), plan.rows);
  EXPECT_EQ((std::vector<int32_t>{1, 0, 0, 1, 1}), plan.slots);
}

TEST(Plan, TakesDegenerateAssignments) {
  Plan plan;
  make_plan(nullptr, 0, 2, 3, &plan);
  EXPECT_EQ((std::vector<int64_t>{0, 0, 0, 0}), plan.offsets);
  EXPECT_TRUE(plan.rows.empty());
  const std::vector<int32_t> nowhere(6, -1);
  make_plan(nowhere.data(), 3, 2, 3, &plan);
  EXPECT_EQ(0, plan.offsets.back());
  const std::vector<int32_t> together(6, 1);
  make_plan(together.data(), 3, 2, 3, &plan);
  EXPECT_EQ((std::vector<int64_t>{0, 0, 6, 6}), plan.offsets);
  EXPECT_EQ((std::vector<int32_t>{0, 0, 1, 1, 2, 2}), plan.rows);
}

TEST(Plan, NamesTheTokenAndSlotOfAnIdThatIsNoExpert) {
  for (const int32_t wrong : {-2, 4, INT32_MAX, INT32_MIN}) {
    const std::vector<int32_t> experts = {0, 1, 2, wrong};
    Plan plan;
    try {
      make_plan(experts.data(), 2, 2, 4, &plan);
      FAIL();
    } catch (const ValueError& e) {
      EXPECT_EQ("[plan] token 1, slot 1 has expert " + std::to_string(wrong) +
                    "; -1 (empty) or 0 to 3 is required",
                std::string(e.what()));
    }
  }
}

TEST(Plan, CountsOnTopOfWhatWasCounted) {
  const std::vector<int32_t> experts = {2, 0, -1, 2, 0, 2};
  std::vector<int64_t> counts = {10, 0, 0, 1};
  EXPECT_EQ(5, count_slots(experts.data(), 3, 2, 4, counts.data()));
  EXPECT_EQ((std::vector<int64_t>{12, 0, 3, 1}), counts);
  EXPECT_EQ(0, count_slots(nullptr, 0, 2, 4, counts.data()));
  EXPECT_THROW(count_slots(experts.data(), 3, 2, 2, counts.data()), ValueError);
}

}  // namespace
}  // namespace moe
