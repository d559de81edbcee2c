#include "moe/quant/gptq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "moe/base/buffer.h"
#include "support/reference.h"

namespace moe {
namespace {

/// Inputs whose columns hang together, as GPTQ needs them to gain anything: H = sum of x xᵀ.
std::vector<double> hessian_of(int64_t n, int64_t samples, uint64_t seed) {
  const std::vector<float> hidden = testing::normal(samples * 4, seed);
  const std::vector<float> mix = testing::normal(4 * n, seed + 1);
  const std::vector<float> noise = testing::normal(samples * n, seed + 2, 0.4);
  std::vector<double> h(static_cast<size_t>(n * n), 0.0), x(static_cast<size_t>(n));
  for (int64_t s = 0; s < samples; ++s) {
    for (int64_t k = 0; k < n; ++k) {
      double value = noise[static_cast<size_t>(s * n + k)];
      for (int64_t i = 0; i < 4; ++i) {
        value += hidden[static_cast<size_t>(s * 4 + i)] * mix[static_cast<size_t>(i * n + k)];
      }
      x[static_cast<size_t>(k)] = value * (1.0 + static_cast<double>(k % 5));
    }
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        h[static_cast<size_t>(i * n + j)] += x[static_cast<size_t>(i)] * x[static_cast<size_t>(j)];
      }
    }
  }
  return h;
}

std::vector<int32_t> by_diagonal(const std::vector<double>& h, int64_t n) {
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return h[a * n + a] > h[b * n + b]; });
  return order;
}

TEST(InverseFactor, ItsProductWithItselfIsTheInverse) {
  for (const int64_t n : {1, 2, 63, 64, 65, 200}) {
    const std::vector<double> h = hessian_of(n, 2 * n + 8, 3);
    const std::vector<int32_t> order = by_diagonal(h, n);
    std::vector<float> u(static_cast<size_t>(n * n));
    constexpr double kDamp = 0.01;
    ASSERT_TRUE(inverse_factor(h.data(), n, order.data(), kDamp, u.data()));
    double mean = 0.0;
    for (int64_t i = 0; i < n; ++i) mean += h[static_cast<size_t>(i * n + i)] / double(n);
    // (H + λI) Uᵀ U = I
    double worst = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      std::vector<double> product(static_cast<size_t>(n), 0.0);
      for (int64_t k = 0; k < n; ++k) {
        double left = h[static_cast<size_t>(order[i] * n + order[k])];
        if (i == k) left += kDamp * mean;
        for (int64_t j = 0; j < n; ++j) {
          for (int64_t m = 0; m <= std::min(k, j); ++m) {
            product[static_cast<size_t>(j)] += left * double(u[static_cast<size_t>(m * n + k)]) *
                                               double(u[static_cast<size_t>(m * n + j)]);
          }
        }
      }
      for (int64_t j = 0; j < n; ++j) {
        worst = std::max(worst, std::fabs(product[static_cast<size_t>(j)] - (i == j ? 1.0 : 0.0)));
      }
      for (int64_t j = 0; j < i; ++j) EXPECT_EQ(u[static_cast<size_t>(i * n + j)], 0.0f);
    }
    // U is rounded to float; the condition of H + λI magnifies that.
    EXPECT_LT(worst, 2e-3) << n;
  }
}

TEST(InverseFactor, RefusesWhatIsNotPositiveDefinite) {
  const std::vector<int32_t> order = {0, 1};
  std::vector<float> u(4);
  const std::vector<double> indefinite = {1.0, 2.0, 2.0, 1.0}, broken = {NAN, 0.0, 0.0, 1.0};
  EXPECT_FALSE(inverse_factor(indefinite.data(), 2, order.data(), 0.0, u.data()));
  EXPECT_FALSE(inverse_factor(broken.data(), 2, order.data(), 0.01, u.data()));
}

class EveryRounding : public ::testing::TestWithParam<int> {
 protected:
  const FormatInfo& info_ = format_info(static_cast<Format>(GetParam()));
  void SetUp() override {
    if (info_.round == nullptr) GTEST_SKIP() << info_.name << " is written block by block";
  }
};
INSTANTIATE_TEST_SUITE_P(Format, EveryRounding, ::testing::Range(0, kFormatCount),
                         [](const auto& format) {
                           return std::string(format_info(static_cast<Format>(format.param)).name);
                         });

TEST_P(EveryRounding, WritesOneValueAndKeepsTheOthers) {
  const int64_t depth = std::max<int64_t>(2 * info_.depth, 8);
  const int64_t group = info_.group != 0 ? info_.group : info_.depth;
  const std::vector<float> rows = testing::normal(kPanelRows * depth, 11, 0.02);
  const std::vector<float> wishes = testing::normal(kPanelRows * depth, 12, 0.02);
  Buffer buffer(static_cast<size_t>(info_.panel_bytes(depth)));
  std::byte* panel = buffer.data();
  info_.encode(rows.data(), depth, panel);
  std::vector<float> values;
  for (int r = 0; r < kPanelRows; ++r) {
    for (int64_t k = 0; k < depth; ++k) values.push_back(info_.at(panel, depth, r, k));
  }
  for (int r = 0; r < kPanelRows; ++r) {
    for (int64_t k = 0; k < depth; ++k) {
      const auto i = static_cast<size_t>(r * depth + k);
      // What the format can say it says again.
      EXPECT_EQ(info_.round(panel, depth, r, k, values[i]), values[i]) << r << ", " << k;
      // Any value of this row and group is a candidate; none may be nearer than what was written.
      const float got = info_.round(panel, depth, r, k, wishes[i]);
      EXPECT_EQ(got, info_.at(panel, depth, r, k));
      for (int64_t j = k / group * group; j < k; ++j) {
        const float other = values[static_cast<size_t>(r * depth + j)];
        EXPECT_LE(std::fabs(got - wishes[i]), std::fabs(other - wishes[i]) * 1.0001f + 1e-7f);
      }
      EXPECT_EQ(info_.round(panel, depth, r, k, values[i]), values[i]);
    }
  }
  size_t i = 0;
  for (int r = 0; r < kPanelRows; ++r) {
    for (int64_t k = 0; k < depth; ++k) EXPECT_EQ(info_.at(panel, depth, r, k), values[i++]);
  }
}

/// The definition of gptq.h in double, column after column, without lazy blocks.
void naive(const FormatInfo& info, const std::vector<float>& rows, int64_t cols, int64_t depth,
           const std::vector<float>& u, const std::vector<int32_t>& order, bool refit,
           std::byte* panel) {
  info.encode(rows.data(), depth, panel);
  std::vector<double> w(rows.begin(), rows.end());
  for (int64_t i = 0; i < cols; ++i) {
    if (refit && i % info.depth == 0) {
      std::vector<float> block;
      for (int r = 0; r < kPanelRows; ++r) {
        for (int64_t k = 0; k < info.depth; ++k) {
          block.push_back(static_cast<float>(w[static_cast<size_t>(r * depth + i + k)]));
        }
      }
      info.encode(block.data(), info.depth, panel + i / info.depth * info.block_bytes);
    }
    for (int r = 0; r < kPanelRows; ++r) {
      double* row = w.data() + r * depth;
      const float wanted = static_cast<float>(row[order[i]]);
      const double error = (row[order[i]] - info.round(panel, depth, r, order[i], wanted)) /
                           u[static_cast<size_t>(i * cols + i)];
      for (int64_t j = i + 1; j < cols; ++j) {
        row[order[j]] -= error * u[static_cast<size_t>(i * cols + j)];
      }
    }
  }
}

double output_error(const FormatInfo& info, const std::vector<float>& rows, int64_t cols,
                    int64_t depth, const std::vector<double>& h, const std::byte* panel) {
  double sum = 0.0;
  std::vector<double> delta(static_cast<size_t>(cols));
  for (int r = 0; r < kPanelRows; ++r) {
    for (int64_t k = 0; k < cols; ++k) {
      delta[static_cast<size_t>(k)] =
          info.at(panel, depth, r, k) - rows[static_cast<size_t>(r * depth + k)];
    }
    for (int64_t i = 0; i < cols; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        sum += delta[static_cast<size_t>(i)] * h[static_cast<size_t>(i * cols + j)] *
               delta[static_cast<size_t>(j)];
      }
    }
  }
  return sum;
}

TEST_P(EveryRounding, FollowsTheDefinitionAndHalvesTheErrorOfTheOutputs) {
  for (const int64_t cols : {5, 48, 130, 300}) {
    const int64_t depth = info_.blocks(cols) * info_.depth;
    std::vector<float> rows(static_cast<size_t>(kPanelRows * depth), 0.0f);
    const std::vector<float> values = testing::normal(kPanelRows * cols, 21, 0.02);
    for (int r = 0; r < kPanelRows; ++r) {
      std::copy_n(values.begin() + r * cols, cols, rows.begin() + r * depth);
    }
    const std::vector<double> h = hessian_of(cols, 4 * cols + 50, 31);
    std::vector<int32_t> natural(static_cast<size_t>(cols));
    std::iota(natural.begin(), natural.end(), 0);
    Buffer plain(static_cast<size_t>(info_.panel_bytes(cols)));
    info_.encode(rows.data(), depth, plain.data());
    const double before = output_error(info_, rows, cols, depth, h, plain.data());
    for (const bool refit : {false, true}) {
      if (refit && info_.trailer_bytes != 0) continue;
      const std::vector<int32_t> order = refit ? natural : by_diagonal(h, cols);
      std::vector<float> u(static_cast<size_t>(cols * cols));
      ASSERT_TRUE(inverse_factor(h.data(), cols, order.data(), 0.01, u.data()));
      Buffer panel(static_cast<size_t>(info_.panel_bytes(cols)));
      Buffer wanted(static_cast<size_t>(info_.panel_bytes(cols)));
      std::vector<float> work(static_cast<size_t>(gptq_work(depth)));
      gptq_panel(info_, rows.data(), cols, depth, u.data(), order.data(), refit, work.data(),
                 panel.data());
      naive(info_, rows, cols, depth, u, order, refit, wanted.data());
      // A correction that ends between two values may go either way in float and in double; every
      // later column of its row is then another, so what counts is what comes out.
      const double got = output_error(info_, rows, cols, depth, h, panel.data());
      const double want = output_error(info_, rows, cols, depth, h, wanted.data());
      EXPECT_NEAR(got, want, 0.15 * want) << cols << " columns, refit " << refit;
      // With five columns there is next to nothing that could take an error back.
      if (cols > 5) {
        EXPECT_LT(got, 0.5 * before) << cols << " columns, refit " << refit;
      }
    }
  }
}

// Inputs that never occur leave rounding to nearest.
TEST_P(EveryRounding, WithoutCorrelationsItRoundsToNearest) {
  const int64_t cols = 2 * info_.depth + 3, depth = info_.blocks(cols) * info_.depth;
  std::vector<float> rows(static_cast<size_t>(kPanelRows * depth), 0.0f);
  const std::vector<float> values = testing::normal(kPanelRows * cols, 41, 0.02);
  for (int r = 0; r < kPanelRows; ++r) {
    std::copy_n(values.begin() + r * cols, cols, rows.begin() + r * depth);
  }
  std::vector<double> h(static_cast<size_t>(cols * cols), 0.0);
  for (int64_t i = 0; i < cols; ++i) h[static_cast<size_t>(i * cols + i)] = 1.0 + i % 3;
  const std::vector<int32_t> order = by_diagonal(h, cols);
  std::vector<float> u(static_cast<size_t>(cols * cols));
  ASSERT_TRUE(inverse_factor(h.data(), cols, order.data(), 0.01, u.data()));
  Buffer panel(static_cast<size_t>(info_.panel_bytes(cols)));
  Buffer plain(static_cast<size_t>(info_.panel_bytes(cols)));
  std::vector<float> work(static_cast<size_t>(gptq_work(depth)));
  gptq_panel(info_, rows.data(), cols, depth, u.data(), order.data(), false, work.data(),
             panel.data());
  info_.encode(rows.data(), depth, plain.data());
  for (int r = 0; r < kPanelRows; ++r) {
    for (int64_t k = 0; k < cols; ++k) {
      const float wish = rows[static_cast<size_t>(r * depth + k)];
      const float nearest = std::fabs(info_.at(plain.data(), depth, r, k) - wish);
      EXPECT_LE(std::fabs(info_.at(panel.data(), depth, r, k) - wish), nearest * 1.0001f + 1e-9f);
    }
  }
}

}  // namespace
}  // namespace moe
