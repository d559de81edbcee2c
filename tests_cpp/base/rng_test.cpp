#include "moe/base/rng.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

// The published sequence of SplitMix64 for seed 1234567 (its state steps by the same constant).
TEST(Rng, IsSplitMix64) {
  const uint64_t expected[] = {6457827717110365317ull, 3203168211198807973ull,
                               9817491932198370423ull, 4593380528125082431ull,
                               16408922859458223821ull};
  for (uint64_t i = 0; i < 5; ++i) EXPECT_EQ(random_bits(1234567, i), expected[i]);
}

TEST(Rng, UniformStaysBelowOneAndFillsTheRange) {
  constexpr int kDraws = 100000, kBins = 10;
  int bins[kBins] = {};
  for (int i = 0; i < kDraws; ++i) {
    const double u = random_uniform(7, static_cast<uint64_t>(i));
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++bins[static_cast<int>(u * kBins)];
  }
  // The draws are fixed, and five standard deviations (95 each) are far from chance.
  for (int count : bins) EXPECT_NEAR(count, kDraws / kBins, 475);
}

}  // namespace
}  // namespace moe
