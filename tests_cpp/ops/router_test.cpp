#include "moe/ops/router.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "moe/base/check.h"
#include "moe/base/parallel.h"
#include "support/isas.h"
#include "support/reference.h"

namespace moe {
namespace {

using testing::normal;
using testing::RoutedToken;

struct Routed {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Routed run(const RouterInput& input, const RouterRule& rule) {
  const auto size = static_cast<size_t>(input.logits.rows * rule.top_k);
  Routed routed{std::vector<int32_t>(size, -7), std::vector<float>(size, -7.0f)};
  route(input, rule, routed.experts.data(), routed.weights.data());
  return routed;
}

std::vector<double> widen(const float* x, int64_t n) { return {x, x + n}; }

class Router : public testing::EveryIsa {};
MOE_EVERY_ISA(Router);

/// Every token against the reference.
void expect_reference(const RouterInput& input, const RouterRule& rule) {
  const Routed routed = run(input, rule);
  const int64_t experts = input.logits.cols;
  for (int64_t t = 0; t < input.logits.rows; ++t) {
    std::vector<double> logits = widen(input.logits.row(t), experts);
    std::vector<double> bias;
    std::vector<uint8_t> forbidden;
    if (input.noise.data != nullptr) {
      for (int64_t e = 0; e < experts; ++e) {
        logits[e] = static_cast<double>(input.logits.row(t)[e] + input.noise.row(t)[e]);
      }
    }
    if (input.select_bias != nullptr) bias = widen(input.select_bias, experts);
    if (input.forbidden != nullptr) {
      const uint8_t* row = input.forbidden + t * input.forbidden_stride;
      forbidden.assign(row, row + experts);
    }
    const RoutedToken expected = testing::route_token(logits, rule, bias, forbidden);
    for (int s = 0; s < rule.top_k; ++s) {
      const auto at = static_cast<size_t>(t * rule.top_k + s);
      ASSERT_EQ(expected.experts[s], routed.experts[at])
          << "token " << t << " slot " << s << " of " << experts << " experts, score "
          << static_cast<int>(rule.score);
      ASSERT_NEAR(expected.weights[s], routed.weights[at], 2e-6 * expected.weights[s] + 1e-37)
          << "token " << t << " slot " << s << ", score " << static_cast<int>(rule.score);
    }
  }
}

TEST_P(Router, AgreesWithTheReferenceForEveryScoreAndSize) {
  for (const int experts : {1, 3, 5, 8, 16, 17, 64, 160, 256, 384}) {
    const int64_t tokens = experts > 100 ? 5 : 9;
    const auto logits = normal(tokens * experts, 11 + experts, 2.0);
    const auto bias = normal(experts, 12, 0.3);
    for (const Score score : {Score::kSoftmax, Score::kSoftmaxTopk, Score::kSigmoid,
                              Score::kSqrtSoftplus, Score::kInputSigmoid}) {
      for (const int k : {1, 2, 3, 6, 8, 9, 22, 31, 40, experts - 1, experts}) {
        if (k < 1 || k > experts) continue;
        for (const bool biased : {false, true}) {
          RouterRule rule;
          rule.score = score;
          rule.top_k = k;
          rule.normalize = k % 2 == 0;
          rule.normalize_min = k % 4 == 0 ? 0.4f : 0.0f;
          rule.scale = k % 3 == 0 ? 2.5f : 1.0f;
          RouterInput input;
          input.logits = {logits.data(), tokens, experts};
          input.select_bias = biased ? bias.data() : nullptr;
          expect_reference(input, rule);
        }
      }
    }
  }
}

TEST_P(Router, LimitsGroups) {
  for (const int experts : {4, 12, 64, 160, 256}) {
    const int64_t tokens = 9;
    const auto logits = normal(tokens * experts, 21 + experts, 2.0);
    // Negative sums of score and bias: they must still beat experts of groups that are out.
    auto bias = normal(experts, 22, 0.3);
    for (float& b : bias) b -= 1.0f;
    for (const int groups : {1, 2, 4, 8, 16, 32}) {
      if (experts % groups != 0) continue;
      for (int kept = 1; kept <= groups; kept += groups > 8 ? 5 : 2) {
        for (const GroupScore group_score : {GroupScore::kTop2, GroupScore::kMax}) {
          for (const Score score : {Score::kSigmoid, Score::kSoftmax}) {
            for (const bool fill_zero : {false, true}) {
              RouterRule rule;
              rule.score = score;
              rule.top_k = std::min(8, experts / groups * kept);
              rule.groups = groups;
              rule.top_groups = kept;
              rule.group_score = group_score;
              rule.group_fill_zero = fill_zero;
              rule.normalize = true;
              RouterInput input;
              input.logits = {logits.data(), tokens, experts};
              input.select_bias = fill_zero ? nullptr : bias.data();
              expect_reference(input, rule);
            }
          }
        }
      }
    }
  }
}

TEST_P(Router, GivesTiesToTheLowerId) {
  for (const int experts : {5, 16, 40, 256}) {
    // Three values only: nearly all of a row is tied. -0 and 0 are one value.
    std::vector<float> logits(static_cast<size_t>(experts * 4));
    for (size_t i = 0; i < logits.size(); ++i) {
      const uint64_t r = random_bits(5, i) % 4;
      logits[i] = r == 0 ? 1.0f : r == 1 ? -1.0f : r == 2 ? 0.0f : -0.0f;
    }
    for (const Score score : {Score::kSoftmax, Score::kSoftmaxTopk, Score::kSigmoid}) {
      for (int k = 1; k <= experts; k = k < 12 ? k + 1 : k * 2) {
        RouterRule rule;
        rule.score = score;
        rule.top_k = k;
        RouterInput input;
        input.logits = {logits.data(), 4, experts};
        expect_reference(input, rule);
      }
    }
  }
}

TEST_P(Router, GivesTiedGroupsToTheLowerNumber) {
  for (const int size : {2, 16, 20, 32}) {
    for (const int groups : {4, 8, 12}) {
      const int experts = size * groups;
      std::vector<float> logits(static_cast<size_t>(experts * 6));
      for (size_t i = 0; i < logits.size(); ++i) {
        logits[i] = static_cast<float>(random_bits(15, i) % 2);
      }
      RouterRule rule;
      rule.score = Score::kSigmoid;
      rule.groups = groups;
      rule.top_groups = groups / 2;
      rule.top_k = std::min(8, size * rule.top_groups);
      RouterInput input;
      input.logits = {logits.data(), 6, experts};
      expect_reference(input, rule);
    }
  }
}

TEST_P(Router, MasksWithinGroups) {
  const int experts = 64;
  const auto logits = normal(5 * experts, 16);
  std::vector<uint8_t> forbidden(static_cast<size_t>(experts), 0);
  // Group 1 keeps one expert, group 2 none.
  for (int e = 8; e < 24; ++e) forbidden[static_cast<size_t>(e)] = e != 11;
  for (const int kept : {2, 7, 8}) {
    RouterRule rule;
    rule.score = Score::kSigmoid;
    rule.groups = 8;
    rule.top_groups = kept;
    rule.top_k = 8;
    RouterInput input;
    input.logits = {logits.data(), 5, experts};
    input.forbidden = forbidden.data();
    expect_reference(input, rule);
  }
}

TEST_P(Router, AMaskRemovesTheExpert) {
  const int experts = 37, kept = 30;
  const auto logits = normal(6 * experts, 31, 2.0);
  std::vector<uint8_t> forbidden(static_cast<size_t>(experts), 0);
  std::vector<int32_t> ids;  // of the experts that are left
  for (int e = 0; e < experts; ++e) {
    forbidden[e] = e % 5 == 3;
    if (forbidden[e] == 0) ids.push_back(e);
  }
  ASSERT_EQ(kept, static_cast<int>(ids.size()));
  std::vector<float> fewer;
  for (int t = 0; t < 6; ++t) {
    for (const int32_t e : ids) fewer.push_back(logits[static_cast<size_t>(t * experts + e)]);
  }
  for (const Score score : {Score::kSoftmax, Score::kSoftmaxTopk, Score::kSigmoid}) {
    RouterRule rule;
    rule.score = score;
    rule.top_k = 6;
    RouterInput masked, removed;
    masked.logits = {logits.data(), 6, experts};
    masked.forbidden = forbidden.data();
    removed.logits = {fewer.data(), 6, kept};
    const Routed a = run(masked, rule), b = run(removed, rule);
    for (size_t i = 0; i < a.experts.size(); ++i) {
      EXPECT_EQ(a.experts[i], ids[static_cast<size_t>(b.experts[i])]);
      // Not the same bits: a sum over lanes depends on which lane holds which expert.
      EXPECT_NEAR(a.weights[i], b.weights[i], 1e-6f * b.weights[i]);
    }
    expect_reference(masked, rule);
  }
}

TEST_P(Router, LeavesSlotsEmptyWhereTooFewExpertsAreAllowed) {
  const int experts = 20;
  const auto logits = normal(3 * experts, 41);
  std::vector<uint8_t> forbidden(static_cast<size_t>(3 * experts), 1);
  forbidden[7] = forbidden[19] = 0;  // token 0: two experts, token 1: none
  for (int e = 0; e < experts; ++e) forbidden[static_cast<size_t>(2 * experts + e)] = 0;
  RouterRule rule;
  rule.score = Score::kSigmoid;
  rule.top_k = 4;
  rule.normalize = true;
  RouterInput input;
  input.logits = {logits.data(), 3, experts};
  input.forbidden = forbidden.data();
  input.forbidden_stride = experts;
  expect_reference(input, rule);
  const Routed routed = run(input, rule);
  EXPECT_EQ(-1, routed.experts[2]);
  EXPECT_EQ(-1, routed.experts[4]);
  EXPECT_EQ(0.0f, routed.weights[4]);
  EXPECT_NE(-1, routed.experts[11]);
}

TEST_P(Router, KeepsDamageInItsRow) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const int experts = 24;
  for (const Score score : {Score::kSoftmax, Score::kSoftmaxTopk, Score::kSigmoid,
                            Score::kSqrtSoftplus, Score::kInputSigmoid, Score::kSparseMixer}) {
    auto logits = normal(4 * experts, 51);
    RouterRule rule;
    rule.score = score;
    rule.top_k = 3;
    RouterInput input;
    input.logits = {logits.data(), 4, experts};
    const Routed clean = run(input, rule);
    logits[1 * experts + clean.experts[3]] = nan;  // token 1's best
    for (int e = 0; e < experts; ++e) logits[2 * experts + e] = nan;
    const Routed hurt = run(input, rule);
    for (int s = 0; s < 3; ++s) {
      EXPECT_EQ(clean.experts[s], hurt.experts[s]);
      EXPECT_EQ(clean.weights[s], hurt.weights[s]);
      EXPECT_TRUE(std::isnan(hurt.weights[3 + s]));
      EXPECT_NE(clean.experts[3], hurt.experts[3 + s]) << "NaN ranks last";
      EXPECT_EQ(s, hurt.experts[6 + s]) << "all NaN: a tie";
      EXPECT_TRUE(std::isnan(hurt.weights[6 + s]));
      EXPECT_EQ(clean.weights[9 + s], hurt.weights[9 + s]);
    }
    input.check_finite = true;
    EXPECT_THROW(run(input, rule), ValueError);
  }
}

TEST_P(Router, NoiseIsAddedToTheLogits) {
  const auto logits = normal(3 * 33, 61), noise = normal(3 * 33, 62);
  RouterRule rule;
  rule.top_k = 5;
  RouterInput input;
  input.logits = {logits.data(), 3, 33};
  input.noise = {noise.data(), 3, 33};
  expect_reference(input, rule);
}

TEST_P(Router, ATokensBytesDependOnNoOtherTokenAndNoThread) {
  const int64_t tokens = 300, experts = 64;
  const auto logits = normal(tokens * experts, 71);
  RouterRule rule;
  rule.score = Score::kSigmoid;
  rule.top_k = 6;
  rule.groups = 8;
  rule.top_groups = 3;
  RouterInput all;
  all.logits = {logits.data(), tokens, experts};
  const int threads = num_threads();
  set_num_threads(1);
  const Routed one = run(all, rule);
  set_num_threads(4);
  const Routed four = run(all, rule);
  set_num_threads(threads);
  EXPECT_EQ(one.experts, four.experts);
  EXPECT_EQ(one.weights, four.weights);
  RouterInput alone;
  alone.logits = {logits.data() + 123 * experts, 1, experts};
  const Routed single = run(alone, rule);
  for (int s = 0; s < 6; ++s) EXPECT_EQ(one.weights[123 * 6 + s], single.weights[s]);
}

TEST_P(Router, WeighGivesTheWeightsThatRouteGives) {
  const auto logits = normal(7 * 40, 81);
  for (const Score score : {Score::kSoftmax, Score::kSoftmaxTopk, Score::kSigmoid,
                            Score::kSqrtSoftplus, Score::kInputSigmoid, Score::kSparseMixer}) {
    RouterRule rule;
    rule.score = score;
    rule.top_k = 4;
    rule.normalize = score == Score::kSigmoid;
    rule.jitter_eps = 0.1f;
    RouterInput input;
    input.logits = {logits.data(), 7, 40};
    const Routed routed = run(input, rule);
    std::vector<float> weights(routed.weights.size());
    weigh(input, rule, routed.experts.data(), weights.data());
    EXPECT_EQ(routed.weights, weights);
  }
}

TEST(RouterRuleCheck, NamesWhatIsWrong) {
  const std::vector<float> logits(24, 0.0f);
  RouterInput input;
  input.logits = {logits.data(), 2, 12};
  const auto message_of = [&](const RouterRule& rule) -> std::string {
    try {
      run(input, rule);
    } catch (const ValueError& e) {
      return e.what();
    }
    return "";
  };
  RouterRule rule;
  rule.top_k = 13;
  EXPECT_EQ("[route] k is 13; 1 to 12 (the number of experts) is required", message_of(rule));
  rule.top_k = 2;
  rule.groups = 5;
  EXPECT_EQ("[route] groups is 5; a divisor of 12 (the number of experts) is required",
            message_of(rule));
  rule.groups = 6;
  rule.top_k = 3;
  EXPECT_EQ("[route] k is 3; top_groups leaves 2 experts to choose from", message_of(rule));
}

}  // namespace
}  // namespace moe
