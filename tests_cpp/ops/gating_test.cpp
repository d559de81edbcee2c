#include "moe/ops/gating.h"

#include <gtest/gtest.h>

#include <cmath>

#include "moe/base/check.h"
#include "support/isas.h"
#include "support/reference.h"

namespace moe {
namespace {

using testing::normal;

class GatingTest : public testing::EveryIsa {};
MOE_EVERY_ISA(GatingTest);

double gated(Gating gating, double x) {
  if (gating == Gating::kIdentity) return x;
  const double sigmoid = 1.0 / (1.0 + std::exp(-x));
  return gating == Gating::kSilu ? x * sigmoid : sigmoid;
}
double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

constexpr Gating kAll[] = {Gating::kIdentity, Gating::kSilu, Gating::kSigmoid};

TEST_P(GatingTest, GatesAgreeWithTheReference) {
  for (const int64_t n : {1, 16, 23, 100}) {
    const auto x = normal(3 * n, 1), by = normal(3 * n, 2, 3.0);
    std::vector<float> out(x.size()), alone(x.size());
    for (const Gating gating : kAll) {
      gate({x.data(), 3, n}, {by.data(), 3, n}, gating, out.data());
      gate({}, {by.data(), 3, n}, gating, alone.data());
      for (size_t i = 0; i < x.size(); ++i) {
        const double g = gated(gating, by[i]);
        ASSERT_NEAR(x[i] * g, out[i], 2e-6 * (1.0 + std::fabs(x[i] * g)));
        ASSERT_NEAR(g, alone[i], 2e-6 * (1.0 + std::fabs(g)));
      }
    }
  }
}

TEST_P(GatingTest, GatedNormsAgreeWithTheReference) {
  const int64_t rows = 3;
  for (const int64_t groups : {1, 3}) {
    for (const int64_t size : {1, 16, 21, 64}) {
      const int64_t n = groups * size;
      const auto x = normal(rows * n, 1, 2.0), by = normal(rows * n, 2), weight = normal(n, 3);
      std::vector<float> out(x.size());
      for (const Gating gating : kAll) {
        for (const bool first : {false, true}) {
          GatedNorm norm;
          norm.weight = weight.data();
          norm.eps = 1e-3f;
          norm.gating = gating;
          norm.gate_first = first;
          norm.groups = groups;
          gated_rms_norm({x.data(), rows, n}, {by.data(), rows, n}, norm, out.data());
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t g = 0; g < groups; ++g) {
              std::vector<double> v(size);
              double square = 0.0;
              for (int64_t i = 0; i < size; ++i) {
                const int64_t at = r * n + g * size + i;
                v[i] = first ? x[at] * gated(gating, by[at]) : x[at];
                square += v[i] * v[i] / size;
              }
              for (int64_t i = 0; i < size; ++i) {
                const int64_t at = r * n + g * size + i;
                double y = v[i] / std::sqrt(square + 1e-3) * weight[g * size + i];
                if (!first) y *= gated(gating, by[at]);
                ASSERT_NEAR(y, out[at], 4e-6 * (1.0 + std::fabs(y))) << n;
              }
            }
          }
        }
      }
    }
  }
  float x[4] = {}, out[4];
  GatedNorm norm;
  norm.groups = 3;
  EXPECT_THROW(gated_rms_norm({x, 1, 4}, {x, 1, 4}, norm, out), ValueError);
}

TEST_P(GatingTest, DecaysAgreeWithTheReference) {
  for (const int64_t n : {1, 16, 35}) {
    const auto x = normal(4 * n, 1, 4.0), bias = normal(n, 2);
    auto rate = normal(n, 3);
    for (float& r : rate) r = std::exp(r);
    std::vector<float> decay(x.size()), step(x.size());
    for (const float bound : {0.0f, -5.0f}) {
      DecayParts parts;
      parts.bias = bias.data();
      parts.rate = rate.data();
      parts.low = 0.05f;
      parts.high = 3.0f;
      parts.bound = bound;
      decay_factors({x.data(), 4, n}, parts, decay.data(), step.data());
      for (int64_t i = 0; i < 4 * n; ++i) {
        const double in = static_cast<double>(x[i]) + bias[i % n];
        double wanted = std::min<double>(parts.high, std::max<double>(parts.low, softplus(in)));
        double exponent = -rate[i % n] * wanted;
        if (bound != 0.0f) {
          wanted = 1.0 / (1.0 + std::exp(-rate[i % n] * in));
          exponent = bound * wanted;
        }
        ASSERT_NEAR(wanted, step[i], 4e-6 * (1.0 + wanted));
        ASSERT_NEAR(std::exp(exponent), decay[i], 4e-6);
      }
      std::vector<float> alone(x.size());
      decay_factors({x.data(), 4, n}, parts, alone.data(), nullptr);
      EXPECT_EQ(decay, alone);
      if (bound != 0.0f) continue;
      DecayParts unrated = parts;
      unrated.rate = nullptr;
      decay_factors({x.data(), 4, n}, unrated, nullptr, alone.data());
      EXPECT_EQ(step, alone);
    }
  }
}

}  // namespace
}  // namespace moe
