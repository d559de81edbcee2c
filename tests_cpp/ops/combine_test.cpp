#include "moe/ops/combine.h"

#include <gtest/gtest.h>

#include "moe/base/check.h"
#include "support/isas.h"
#include "support/reference.h"

namespace moe {
namespace {

using testing::normal;

class Combine : public testing::EveryIsa {};
MOE_EVERY_ISA(Combine);

TEST_P(Combine, SumsTheWeightedRowsOfEveryToken) {
  const int k = 3;
  const std::vector<int32_t> experts = {2, 0, -1, 2, 1, 0, -1, -1, -1, 1, 2, 0};
  for (const int64_t hidden : {1, 15, 16, 63, 64, 72, 200}) {
    Plan plan;
    make_plan(experts.data(), 4, k, 3, &plan);
    const auto n = static_cast<int64_t>(plan.rows.size());
    const auto y = normal(n * hidden, 1), weights = normal(4 * k, 2);
    std::vector<float> out(static_cast<size_t>(4 * hidden), -7.0f);
    combine({y.data(), n, hidden}, plan, weights.data(), 4, k, out.data());
    std::vector<double> expected(out.size(), 0.0);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t h = 0; h < hidden; ++h) {
        expected[plan.rows[i] * hidden + h] +=
            static_cast<double>(weights[plan.rows[i] * k + plan.slots[i]]) * y[i * hidden + h];
      }
    }
    for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(expected[i], out[i], 2e-6) << i;
    for (int64_t h = 0; h < hidden; ++h) EXPECT_EQ(0.0f, out[2 * hidden + h]) << "no expert";
  }
}

TEST_P(Combine, PermuteIsTheWayThere) {
  const std::vector<int32_t> experts = {1, 0, 1, -1};
  Plan plan;
  make_plan(experts.data(), 2, 2, 2, &plan);
  const std::vector<float> x = {1, 2, 3, 4, 5, 6};
  std::vector<float> sorted(9);
  permute(x.data(), 2, 12, plan, sorted.data());
  EXPECT_EQ((std::vector<float>{1, 2, 3, 1, 2, 3, 4, 5, 6}), sorted);
  EXPECT_THROW(permute(x.data(), 1, 12, plan, sorted.data()), ValueError);
}

TEST_P(Combine, RefusesAPlanOfAnotherAssignment) {
  const std::vector<int32_t> experts = {1, 0, 1, 0};
  Plan plan;
  make_plan(experts.data(), 2, 2, 2, &plan);
  const std::vector<float> y(40), weights(4);
  std::vector<float> out(40);
  EXPECT_THROW(combine({y.data(), 3, 10}, plan, weights.data(), 2, 2, out.data()), ValueError);
  EXPECT_THROW(combine({y.data(), 4, 10}, plan, weights.data(), 1, 2, out.data()), ValueError);
  EXPECT_THROW(combine({y.data(), 4, 10}, plan, weights.data(), 2, 1, out.data()), ValueError);
}

}  // namespace
}  // namespace moe
