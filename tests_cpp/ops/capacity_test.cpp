#include "moe/ops/capacity.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "moe/base/check.h"

namespace moe {
namespace {

using Ids = std::vector<int32_t>;

TEST(Capacity, PlacesFirstChoicesBeforeSecondOnes) {
  Ids experts = {0, 1, 1, 0, 0, 1};
  EXPECT_EQ(2, limit_capacity(experts.data(), 3, 2, 2, 2, {}));
  EXPECT_EQ((Ids{0, 1, 1, -1, 0, -1}), experts);
}

TEST(Capacity, DropsNothingWhereThereIsRoomAndEverythingWhereThereIsNone) {
  const Ids before = {0, -1, 1, 0};
  Ids experts = before;
  EXPECT_EQ(0, limit_capacity(experts.data(), 2, 2, 2, 2, {}));
  EXPECT_EQ(before, experts);
  EXPECT_EQ(3, limit_capacity(experts.data(), 2, 2, 2, 0, {}));
  EXPECT_EQ(Ids(4, -1), experts);
  EXPECT_EQ(0, limit_capacity(nullptr, 0, 2, 2, 1, {}));
}

TEST(Capacity, TheNextBestWithRoomTakesThePlace) {
  const Ids ranking = {0, 1, 2, 0, 2, 1, 0, 1, -1};
  Ids experts = {0, 0, 0};
  EXPECT_EQ(0, limit_capacity(experts.data(), 3, 1, 3, 1, {ranking.data(), 3, 3}));
  EXPECT_EQ((Ids{0, 2, 1}), experts);
  // A token's own later choice is no substitute: it would be there twice.
  const Ids two = {0, 1, 2, 0, 1, 2};
  experts = {0, 1, 0, 1};
  EXPECT_EQ(1, limit_capacity(experts.data(), 2, 2, 3, 1, {two.data(), 2, 3}));
  EXPECT_EQ((Ids{0, 1, 2, -1}), experts);
}

TEST(Capacity, RefusesIdsThatAreNoExperts) {
  Ids experts = {0, 2};
  EXPECT_THROW(limit_capacity(experts.data(), 2, 1, 2, 1, {}), ValueError);
  const Ids ranking = {0, 9};
  experts = {0, 1};
  EXPECT_THROW(limit_capacity(experts.data(), 2, 1, 2, 1, {ranking.data(), 2, 1}), ValueError);
}

TEST(ChooseTokens, EveryExpertTakesItsBestAndOfEqualsTheEarlier) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> scores = {1, 5, 3, 5, nan, 4, 3, 5};  // four tokens, two experts
  std::vector<uint8_t> chosen(8, 7);
  choose_tokens({scores.data(), 4, 2}, 2, chosen.data());
  EXPECT_EQ((std::vector<uint8_t>{0, 1, 1, 1, 0, 0, 1, 0}), chosen);
  choose_tokens({scores.data(), 4, 2}, 99, chosen.data());
  EXPECT_EQ(std::vector<uint8_t>(8, 1), chosen);
  choose_tokens({scores.data(), 4, 2}, 0, chosen.data());
  EXPECT_EQ(std::vector<uint8_t>(8, 0), chosen);
  EXPECT_THROW(choose_tokens({scores.data(), 4, 2}, -1, chosen.data()), ValueError);
}

}  // namespace
}  // namespace moe
