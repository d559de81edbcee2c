#include "moe/quant/fit.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/reference.h"

namespace moe {
namespace {

using testing::normal;

double scale_error(const std::vector<float>& x, float d, int low, int high) {
  std::vector<uint8_t> codes(x.size());
  scale_codes(x.data(), static_cast<int>(x.size()), d, low, high, codes.data());
  double error = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double e = x[i] - static_cast<double>(d) * (codes[i] + low);
    error += e * e;
  }
  return error;
}

TEST(Fit, AScaleIsNoWorseThanThoseThatReachTheLargestValue) {
  for (uint64_t seed = 1; seed < 20; ++seed) {
    for (const auto& [low, high] : {std::pair<int, int>{-8, 7}, {-4, 3}, {-32, 31}}) {
      std::vector<float> x = normal(32, seed);
      if (seed % 3 == 0) x[seed] = 25.0f;
      const float largest = signed_largest(x.data(), 32);
      const double error = scale_error(x, fit_scale(x.data(), 32, low, high), low, high);
      for (const float by : {0.8f, 0.9f, 1.0f, 1.1f, 1.2f}) {
        const float d = largest / (static_cast<float>(low) * by);
        // With 64 steps the scales that are tried lie a step apart.
        const double slack = low == -32 ? 1.25 : 1.06;
        EXPECT_LE(error, slack * scale_error(x, d, low, high)) << seed << " " << low << " " << by;
      }
    }
  }
}

TEST(Fit, WhatIsExactStaysExact) {
  std::vector<float> x(32);
  for (int i = 0; i < 32; ++i) x[static_cast<size_t>(i)] = 0.25f * static_cast<float>(i % 16 - 8);
  EXPECT_FLOAT_EQ(fit_scale(x.data(), 32, -8, 7), 0.25f);
  for (float& v : x) v += 1.0f;  // [-1, 2.75]
  const Affine by = fit_affine(x.data(), 32, 15);
  EXPECT_FLOAT_EQ(by.scale, 0.25f);
  EXPECT_FLOAT_EQ(by.min, -1.0f);
  const std::vector<float> zeros(32, 0.0f);
  EXPECT_EQ(fit_scale(zeros.data(), 32, -8, 7), 0.0f);
  EXPECT_EQ(fit_affine(zeros.data(), 32, 15).scale, 0.0f);
}

TEST(Fit, AMinimumIsNeverAboveZero) {
  for (uint64_t seed = 1; seed < 20; ++seed) {
    std::vector<float> x = normal(32, seed, 0.3);
    for (float& v : x) v += 2.0f;
    const Affine by = fit_affine(x.data(), 32, 15);
    EXPECT_LE(by.min, 0.0f);
    std::vector<uint8_t> codes(32);
    affine_codes(x.data(), 32, by, 15, codes.data());
    for (size_t i = 0; i < 32; ++i) {
      EXPECT_LE(codes[i], 15);
      EXPECT_NEAR(by.scale * codes[i] + by.min, x[i], 0.75f * by.scale + 1e-6f);
    }
  }
}

TEST(Fit, ATableGivesItsNearestValue) {
  static constexpr int8_t kValues[] = {-127, -20, -3, 1, 2, 60, 113};
  const NearestTable table(kValues);
  for (float x = -140.0f; x < 140.0f; x += 0.21f) {
    const int got = table.value[NearestTable::index(x)];
    for (const int other : kValues) EXPECT_LE(std::fabs(x - got), std::fabs(x - other)) << x;
    EXPECT_EQ(kValues[table.code[NearestTable::index(x)]], got);
  }
  EXPECT_EQ(NearestTable::index(std::nanf("")), 0);
}

}  // namespace
}  // namespace moe
