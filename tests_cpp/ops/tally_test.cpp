#include "moe/ops/tally.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "moe/base/check.h"

namespace moe {
namespace {

using Counts = std::vector<int64_t>;

TEST(ExpertTally, CountsTheSlotsOfFinishedPasses) {
  ExpertTally tally(3, 4);
  const std::vector<int32_t> ids = {2, 0, -1, 2, 0, 2};
  tally.count(1, ids.data(), 3, 2);  // more slots than experts
  tally.count(2, ids.data(), 2, 1);  // fewer
  tally.count(0, nullptr, 0, 2);
  EXPECT_EQ(Counts(12, 0), tally.counts());
  EXPECT_EQ(0, tally.tokens());
  tally.finish(3);
  EXPECT_EQ((Counts{0, 0, 0, 0, 2, 0, 3, 0, 1, 0, 1, 0}), tally.counts());
  tally.count(0, ids.data(), 1, 1);
  tally.discard();
  tally.count(0, ids.data() + 1, 1, 1);
  tally.finish(1);
  EXPECT_EQ((Counts{1, 0, 0, 0, 2, 0, 3, 0, 1, 0, 1, 0}), tally.counts());
  EXPECT_EQ(4, tally.tokens());
}

// Whatever the passes' sizes, and whenever somebody looks: what a loop over all slots counts.
TEST(ExpertTally, CountsManyPassesLikeALoop) {
  std::mt19937 random(7);
  for (const int64_t experts : {1, 5, 300}) {
    ExpertTally tally(4, experts);
    Counts expected(static_cast<size_t>(4 * experts));
    int64_t tokens_in_all = 0;
    for (int pass = 0; pass < 700; ++pass) {
      const int k = 1 + static_cast<int>(random() % 4);
      const int64_t tokens = pass % 50 == 0 ? 200 : random() % 3;
      Counts counted(expected.size());
      for (int64_t layer = 0; layer < 4; ++layer) {
        std::vector<int32_t> ids(static_cast<size_t>(tokens * k));
        for (int32_t& id : ids) {
          id = static_cast<int32_t>(random() % static_cast<uint32_t>(experts + 1)) - 1;
          if (id >= 0) ++counted[static_cast<size_t>(layer * experts + id)];
        }
        tally.count(layer, ids.data(), tokens, k);
        if (random() % 40 == 0) {
          EXPECT_EQ(expected, tally.counts());
        }
      }
      if (random() % 5 == 0) {
        tally.discard();
        continue;
      }
      tally.finish(tokens);
      tokens_in_all += tokens;
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += counted[i];
    }
    EXPECT_EQ(expected, tally.counts());
    EXPECT_EQ(tokens_in_all, tally.tokens());
  }
}

TEST(ExpertTally, AddsARunningPassOfAnother) {
  ExpertTally inner(2, 2), outer(2, 2);
  const std::vector<int32_t> ids = {1, 0, 1};
  for (int i = 0; i < 3; ++i) {
    inner.count(0, ids.data(), 3, 1);
    outer.count(1, ids.data(), 1, 1);  // runs meanwhile
    outer.add_running(inner, 3);
    inner.finish(3);
    outer.discard();
  }
  EXPECT_EQ((Counts{3, 6, 0, 0}), outer.counts());
  EXPECT_EQ(inner.counts(), outer.counts());
  EXPECT_EQ(9, outer.tokens());
}

TEST(ExpertTally, RefusesWhatIsNotThere) {
  ExpertTally tally(2, 3);
  const std::vector<int32_t> ids = {0, 3, 0, 1, 1, -2};
  EXPECT_THROW(tally.count(2, ids.data(), 1, 1), ValueError);
  EXPECT_THROW(tally.count(-1, ids.data(), 1, 1), ValueError);
  EXPECT_THROW(tally.count(0, ids.data(), 2, 1), ValueError);
  EXPECT_THROW(tally.count(0, ids.data() + 2, 4, 1), ValueError);
  tally.finish(0);
  EXPECT_EQ(Counts(6, 0), tally.counts());
  EXPECT_THROW(tally.add_running(ExpertTally(3, 2), 1), ValueError);
  EXPECT_THROW(ExpertTally(-1, 2), ValueError);
  EXPECT_THROW(ExpertTally(1, -2), ValueError);
  EXPECT_THROW(ExpertTally(INT64_MAX, INT64_MAX), ValueError);
  EXPECT_TRUE(ExpertTally(5, 0).counts().empty());
}

}  // namespace
}  // namespace moe
