#include "moe/ops/causal_conv.h"

#include <gtest/gtest.h>

#include <cmath>

#include "moe/base/check.h"
#include "support/isas.h"
#include "support/reference.h"

namespace moe {
namespace {

using testing::normal;

class CausalConv : public testing::EveryIsa {};
MOE_EVERY_ISA(CausalConv);

TEST_P(CausalConv, AgreesWithTheReferenceForEverySizeAndPart) {
  const int64_t tokens = 7;
  for (const int64_t channels : {1, 15, 16, 17, 40, 129}) {
    for (const int64_t taps : {1, 2, 4, 9}) {
      const auto x = normal(tokens * channels, 1), weight = normal(taps * channels, 2);
      const auto bias = normal(channels, 3), state = normal((taps - 1) * channels, 4);
      for (const bool whole : {false, true}) {
        ConvParts parts;
        parts.weight = weight.data();
        parts.taps = taps;
        parts.bias = whole ? bias.data() : nullptr;
        parts.state = whole ? state.data() : nullptr;
        parts.activation = whole ? Gating::kSilu : Gating::kIdentity;
        std::vector<float> out(x.size()), next(state.size());
        causal_conv({x.data(), tokens, channels}, parts, out.data(), next.data());
        const auto input = [&](int64_t t, int64_t c) -> double {
          if (t >= 0) return x[t * channels + c];
          return whole ? state[(taps - 1 + t) * channels + c] : 0.0;
        };
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t c = 0; c < channels; ++c) {
            double y = whole ? bias[c] : 0.0;
            for (int64_t w = 0; w < taps; ++w) {
              y += weight[w * channels + c] * input(t - taps + 1 + w, c);
            }
            if (whole) y /= 1.0 + std::exp(-y);
            ASSERT_NEAR(y, out[t * channels + c], 4e-6) << channels << " channels, " << taps;
          }
        }
        for (int64_t w = 0; w < taps - 1; ++w) {
          for (int64_t c = 0; c < channels; ++c) {
            ASSERT_EQ(static_cast<float>(input(tokens - taps + 1 + w, c)), next[w * channels + c]);
          }
        }
      }
    }
  }
}

TEST_P(CausalConv, OneTokenAtATimeGivesTheSameBytes) {
  const int64_t tokens = 9, channels = 37, taps = 4;
  const auto x = normal(tokens * channels, 1), weight = normal(taps * channels, 2);
  ConvParts parts;
  parts.weight = weight.data();
  parts.taps = taps;
  parts.activation = Gating::kSilu;
  std::vector<float> whole(x.size()), end(3 * channels), single(x.size());
  std::vector<float> states[2] = {std::vector<float>(3 * channels),
                                  std::vector<float>(3 * channels)};
  causal_conv({x.data(), tokens, channels}, parts, whole.data(), end.data());
  for (int64_t t = 0; t < tokens; ++t) {
    parts.state = t == 0 ? nullptr : states[(t + 1) % 2].data();
    causal_conv({x.data() + t * channels, 1, channels}, parts, single.data() + t * channels,
                states[t % 2].data());
  }
  EXPECT_EQ(whole, single);
  EXPECT_EQ(end, states[(tokens - 1) % 2]);
}

TEST(CausalConvErrors, TapsAreBounded) {
  float x = 0.0f, out = 0.0f;
  for (const int64_t taps : {0, 65}) {
    ConvParts parts;
    parts.taps = taps;
    EXPECT_THROW(causal_conv({&x, 1, 1}, parts, &out, &out), ValueError);
  }
}

}  // namespace
}  // namespace moe
