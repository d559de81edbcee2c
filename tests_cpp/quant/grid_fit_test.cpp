#include "moe/quant/grid_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "moe/quant/ggml_iq.h"
#include "support/reference.h"

namespace moe {
namespace {

using testing::normal;

// Scales and codes of a row as its format rounds it.
template <class F>
GridRow fitted(const std::vector<float>& x) {
  GridRow row{};
  F::quantise(x.data(), row);
  return row;
}

// The least squared error of four or eight columns with any point, and with the one chosen.
template <class Points>
void compare(const Points& grid, const float* sizes, int code, double* chosen, double* least) {
  double best = std::numeric_limits<double>::infinity();
  for (int p = 0; p < Points::kPoints; ++p) {
    double error = 0.0;
    for (int j = 0; j < Points::kWidth; ++j) {
      const double e = sizes[j] - (grid.byte(p, j) - 128);
      error += e * e;
    }
    best = std::min(best, error);
    if (p == code) *chosen += error;
  }
  *least += best;
}

TEST(GridFit, ChoosesThePointsThatAreNearest) {
  double chosen = 0.0, least = 0.0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const std::vector<float> x = normal(256, seed);
    const GridRow row = fitted<Iq2SFormat>(x);
    for (int i = 0; i < 32; ++i) {
      const float scale = to_float(row.d) * static_cast<float>(2 * row.step[i / 2] + 1) / 8.0f;
      float sizes[8];
      for (int j = 0; j < 8; ++j) {
        const float value = x[static_cast<size_t>(8 * i + j)];
        EXPECT_EQ(row.signs[i] >> j & 1, value < 0.0f ? 1 : 0);
        sizes[j] = std::fabs(value) / scale;
      }
      compare(kIq2SGrid, sizes, row.code[i], &chosen, &least);
    }
  }
  EXPECT_GE(chosen, least);
  EXPECT_LE(chosen, 1.01 * least);  // the block's scale moved a little after the choice
}

TEST(GridFit, FlipsTheSmallestWeightWhereSignsMustBeEven) {
  std::vector<float> x(256, 1.0f);
  x[3] = -1.0f;
  x[6] = 0.01f;
  x[64] = -1.0f;
  x[65] = -1.0f;
  const GridRow row = fitted<Iq2XxsFormat>(x);
  EXPECT_EQ(row.signs[0], 1 << 3 | 1 << 6);
  EXPECT_EQ(row.signs[8], 3);
  EXPECT_EQ(row.signs[1], 0);
}

// No block scale within ten per cent is much better: the last one solves for it.
TEST(GridFit, TheScaleOfABlockIsTheBestForItsCodes) {
  const std::vector<float> x = normal(256, 7, 0.03);
  const GridRow row = fitted<Iq3XxsFormat>(x);
  const auto error = [&](float d) {
    double sum = 0.0;
    for (int k = 0; k < 256; ++k) {
      const int size = kIq3XxsGrid.byte(row.code[k / 4], k % 4) - 128;
      const int value = (row.signs[k / 8] >> (k % 8) & 1) != 0 ? -size : size;
      const double step = 2 * row.step[k / 32] + 1;
      const double e = x[static_cast<size_t>(k)] - d * step * 0.25 * value;
      sum += e * e;
    }
    return sum;
  };
  const float d = to_float(row.d);
  for (const float by : {0.9f, 0.99f, 1.01f, 1.1f}) EXPECT_LT(error(d), error(d * by));
}

// A block of zeros, padding among weights, numbers at the ends of the range.
TEST(GridFit, TakesAnyNumbers) {
  const std::vector<float> zeros(256, 0.0f);
  EXPECT_EQ(to_float(fitted<Iq2XsFormat>(zeros).d), 0.0f);
  EXPECT_EQ(to_float(fitted<Iq1SFormat>(zeros).d), 0.0f);
  std::vector<float> part = zeros;
  std::fill_n(part.begin(), 32, 0.75f);
  GridRow row = fitted<Iq3SFormat>(part);
  EXPECT_NEAR(to_float(row.d) * static_cast<float>(2 * row.step[0] + 1) *
                  static_cast<float>(kIq3SGrid.byte(row.code[0], 0) - 128),
              0.75f, 1e-3f);
  for (const float odd : {std::numeric_limits<float>::quiet_NaN(), INFINITY, 3e38f, 1e-40f}) {
    std::vector<float> x = normal(256, 3);
    x[17] = odd;
    fitted<Iq1SFormat>(x);
    fitted<Iq1MFormat>(x);
    fitted<Iq2XxsFormat>(x);
    row = fitted<Iq3SFormat>(x);
    for (const uint16_t code : row.code) EXPECT_LT(code, 512);
  }
}

}  // namespace
}  // namespace moe
