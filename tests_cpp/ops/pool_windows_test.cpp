#include "moe/ops/pool_windows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/reference.h"

namespace moe {
namespace {

using testing::normal;

TEST(PoolWindows, IsASoftmaxOfEveryColumnOverItsWindow) {
  for (const int64_t dim : {1, 7, 64, 65, 130}) {
    for (const int64_t length : {1, 4, 9}) {
      const int64_t windows = 3, size = windows * length * dim;
      const auto values = normal(size, 1);
      auto gates = normal(size, 2, 4.0);
      gates[0] = -std::numeric_limits<float>::infinity();
      std::vector<float> out(windows * dim, 5.0f);
      pool_windows(values.data(), gates.data(), windows, length, dim, out.data());
      for (int64_t w = 0; w < windows; ++w) {
        for (int64_t d = 0; d < dim; ++d) {
          double sum = 0.0, total = 0.0;
          for (int64_t j = 0; j < length; ++j) {
            const int64_t at = (w * length + j) * dim + d;
            const double weight = std::exp(static_cast<double>(gates[at]));
            sum += weight;
            total += weight * values[at];
          }
          ASSERT_NEAR(out[w * dim + d], sum == 0.0 ? 0.0 : total / sum, 1e-5) << dim << " " << d;
        }
      }
    }
  }
}

TEST(PoolWindows, AWindowIsItsOwnAndLargeGatesDoNotOverflow) {
  const int64_t windows = 50, length = 8, dim = 33;
  const auto values = normal(windows * length * dim, 3);
  const auto gates = normal(windows * length * dim, 4, 300.0);
  std::vector<float> all(windows * dim), one(dim);
  pool_windows(values.data(), gates.data(), windows, length, dim, all.data());
  for (int64_t w = 0; w < windows; ++w) {
    const int64_t at = w * length * dim;
    pool_windows(values.data() + at, gates.data() + at, 1, length, dim, one.data());
    EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin() + w * dim));
    for (const float x : one) EXPECT_TRUE(std::isfinite(x));
  }
}

TEST(PoolWindows, NanStaysVisibleInItsColumn) {
  std::vector<float> values(6, 1.0f), gates(6, 0.0f), out(2);
  gates[0] = std::numeric_limits<float>::quiet_NaN();
  pool_windows(values.data(), gates.data(), 1, 3, 2, out.data());
  EXPECT_TRUE(std::isnan(out[0]));
  EXPECT_EQ(out[1], 1.0f);
}

}  // namespace
}  // namespace moe
