#include "moe/ops/hyper_connection.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "moe/base/check.h"
#include "support/reference.h"

namespace moe {
namespace {

using testing::normal;

struct Result {
  std::vector<float> read, write, mix;
};

Result run(const std::vector<float>& mixes, const std::vector<float>& base, int64_t tokens,
           int64_t n, int64_t iterations) {
  const float scales[3] = {0.7f, 1.3f, 2.0f};
  HyperConnectionInputs in{mixes.data(), base.data(), scales, tokens, n, iterations, 1e-6f};
  Result r{std::vector<float>(tokens * n), std::vector<float>(tokens * n),
           std::vector<float>(tokens * n * n)};
  hyper_connection(in, r.read.data(), r.write.data(), r.mix.data());
  return r;
}

TEST(HyperConnection, AgreesWithTheDefinitionInDouble) {
  for (const int64_t n : {1, 2, 4, 5}) {
    for (const int64_t iterations : {1, 2, 20}) {
      const int64_t tokens = 3, width = (2 + n) * n;
      const auto mixes = normal(tokens * width, 1), base = normal(width, 2);
      const Result r = run(mixes, base, tokens, n, iterations);
      for (int64_t t = 0; t < tokens; ++t) {
        const auto x = [&](int64_t i, double scale) {
          return mixes[t * width + i] * scale + base[i];
        };
        std::vector<double> m(n * n);
        for (int64_t i = 0; i < n; ++i) {
          EXPECT_NEAR(r.read[t * n + i], 1 / (1 + std::exp(-x(i, 0.7f))) + 1e-6, 1e-6);
          EXPECT_NEAR(r.write[t * n + i], 2 / (1 + std::exp(-x(n + i, 1.3f))), 1e-6);
          double sum = 0.0;
          for (int64_t j = 0; j < n; ++j) sum += std::exp(x(2 * n + i * n + j, 2.0));
          for (int64_t j = 0; j < n; ++j) {
            m[i * n + j] = std::exp(x(2 * n + i * n + j, 2.0)) / sum + 1e-6;
          }
        }
        const auto divide = [&](bool rows) {
          for (int64_t i = 0; i < n; ++i) {
            double sum = 1e-6;
            for (int64_t j = 0; j < n; ++j) sum += rows ? m[i * n + j] : m[j * n + i];
            for (int64_t j = 0; j < n; ++j) (rows ? m[i * n + j] : m[j * n + i]) /= sum;
          }
        };
        divide(false);
        for (int64_t i = 1; i < iterations; ++i) {
          divide(true);
          divide(false);
        }
        for (int64_t i = 0; i < n * n; ++i) EXPECT_NEAR(r.mix[t * n * n + i], m[i], 1e-5);
      }
    }
  }
}

TEST(HyperConnection, ATokenIsItsOwn) {
  const int64_t tokens = 200, n = 4, width = 24;
  const auto mixes = normal(tokens * width, 3), base = normal(width, 4);
  const Result all = run(mixes, base, tokens, n, 20);
  for (const int64_t t : {0, 63, 64, 199}) {
    const Result one =
        run({mixes.begin() + t * width, mixes.begin() + (t + 1) * width}, base, 1, n, 20);
    EXPECT_TRUE(std::equal(one.read.begin(), one.read.end(), all.read.begin() + t * n));
    EXPECT_TRUE(std::equal(one.write.begin(), one.write.end(), all.write.begin() + t * n));
    EXPECT_TRUE(std::equal(one.mix.begin(), one.mix.end(), all.mix.begin() + t * n * n));
  }
}

TEST(MixStreams, IsTheWeightedSumAndATokenIsItsOwn) {
  for (const auto& [tokens, n, m, hidden] : std::vector<std::array<int64_t, 4>>{
           {1, 1, 1, 1}, {5, 4, 1, 33}, {7, 4, 4, 130}, {3, 2, 5, 16}}) {
    const auto x = normal(tokens * n * hidden, 5), w = normal(tokens * n * m, 6);
    const auto added = normal(tokens * hidden, 7), factors = normal(tokens * m, 8);
    for (const bool adds : {false, true}) {
      MixStreamsInputs in{
          x.data(), w.data(), adds ? added.data() : nullptr, factors.data(), tokens, n, m, hidden};
      std::vector<float> out(tokens * m * hidden), one(m * hidden);
      mix_streams(in, out.data());
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t k = 0; k < m; ++k) {
          for (int64_t i = 0; i < hidden; ++i) {
            double sum =
                adds ? static_cast<double>(factors[t * m + k]) * added[t * hidden + i] : 0.0;
            for (int64_t j = 0; j < n; ++j) {
              sum += static_cast<double>(w[(t * n + j) * m + k]) * x[(t * n + j) * hidden + i];
            }
            ASSERT_NEAR(out[(t * m + k) * hidden + i], sum, 1e-5);
          }
        }
        in.tokens = 1;
        in.streams = x.data() + t * n * hidden;
        in.weights = w.data() + t * n * m;
        in.added = adds ? added.data() + t * hidden : nullptr;
        in.factors = factors.data() + t * m;
        mix_streams(in, one.data());
        EXPECT_TRUE(std::equal(one.begin(), one.end(), out.begin() + t * m * hidden));
      }
    }
  }
}

TEST(HyperConnection, RefusesWhatItCannotDo) {
  EXPECT_THROW(run({}, {}, 0, 0, 1), ValueError);
  EXPECT_THROW(run({}, {}, 0, 4, 0), ValueError);
  EXPECT_THROW(run({}, {}, 0, kMaxStreams + 1, 1), ValueError);
}

}  // namespace
}  // namespace moe
