#include "moe/ops/token_step.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "moe/base/check.h"
#include "support/isas.h"
#include "support/reference.h"
#include "support/token_parts.h"

namespace moe {
namespace {

using testing::expect_near;
using testing::Matrix;
using testing::norm;
using testing::normal;
using testing::Row;

class TokenStep : public testing::EveryIsa {};
MOE_EVERY_ISA(TokenStep);

struct Attention {
  static constexpr int64_t kHidden = 37, kHeads = 6, kKvHeads = 2, kDim = 20, kValueDim = 12,
                           kHalf = 7, kRoom = 9;
  Matrix q{kHeads * kDim, kHidden, 1}, k{kKvHeads * kDim, kHidden, 3},
      v{kKvHeads * kValueDim, kHidden, 5}, o{kHidden, kHeads * kValueDim, 7};
  std::vector<float> weight = normal(kHidden, 9), head_weight = normal(kDim, 10),
                     whole_weight = normal(kHeads * kDim, 11), sinks = normal(kHeads, 12);
  // A head's rows lie together.
  std::vector<float> keys = std::vector<float>(kKvHeads * kRoom * kDim, NAN),
                     values = std::vector<float>(kKvHeads * kRoom * kValueDim, NAN);
  RmsNormView head_norm{head_weight.data(), kDim, 0.0f, 1e-6f};
  RmsNormView whole_norm{whole_weight.data(), kHeads * kDim, 1.0f, 1e-5f};
  AttentionStep step;

  Attention() {
    step.norm = {weight.data(), kHidden, 1.0f, 1e-6f};
    step.q = q.view();
    step.k = k.view();
    step.v = v.view();
    step.o = o.view();
    step.heads = kHeads;
    step.kv_heads = kKvHeads;
    step.scale = 0.3f;
  }
  TokenCache cache(std::vector<float>& of, int64_t dim) {
    return {{of.data(), DType::kF32, kRoom, kKvHeads, dim, dim, kRoom * dim}};
  }
  Row run(const std::vector<float>& x, const TokenAngles& angles, int64_t position) {
    std::vector<float> out(kHidden);
    attention_step(step, x.data(), angles, cache(keys, kDim), cache(values, kValueDim), position,
                   out.data());
    return {out.begin(), out.end()};
  }
};

// The same in double, token after token.
struct Reference {
  const Attention& of;
  std::vector<Row> keys, values;

  void prepare(Row& x, const std::optional<RmsNormView>& by, int64_t heads,
               const TokenAngles& angles) const {
    const int64_t dim = Attention::kDim, half = angles.half;
    if (by && by->size == heads * dim) norm(*by, x, 0, heads * dim);
    for (int64_t h = 0; h < heads; ++h) {
      double* head = x.data() + h * dim;
      if (by && by->size != heads * dim) norm(*by, x, h * dim, (h + 1) * dim);
      for (int64_t i = 0; i < half; ++i) {
        double& a = head[of.step.interleaved ? 2 * i : i];
        double& b = head[of.step.interleaved ? 2 * i + 1 : half + i];
        const double was = a, cos = angles.cos[i], sin = angles.sin[i];
        a = was * cos - b * sin;
        b = b * cos + was * sin;
      }
    }
  }
  Row token(const std::vector<float>& x, const TokenAngles& angles) {
    constexpr int64_t kDim = Attention::kDim, kValueDim = Attention::kValueDim;
    Row normed(x.begin(), x.end());
    norm(of.step.norm, normed, 0, Attention::kHidden);
    Row q = of.q.times(normed), k = of.k.times(normed);
    prepare(q, of.step.q_norm, Attention::kHeads, angles);
    prepare(k, of.step.k_norm, Attention::kKvHeads, angles);
    keys.push_back(k);
    values.push_back(of.v.times(normed));
    const auto seen = static_cast<int64_t>(keys.size());
    Row mixed(Attention::kHeads * kValueDim);
    for (int64_t h = 0; h < Attention::kHeads; ++h) {
      const int64_t shared = h / (Attention::kHeads / Attention::kKvHeads);
      const int64_t first = of.step.window > 0 ? std::max<int64_t>(0, seen - of.step.window) : 0;
      Row p;
      double total = of.step.sinks != nullptr ? std::exp(of.step.sinks[h]) : 0.0;
      for (int64_t j = first; j < seen; ++j) {
        const double* key = keys[j].data() + shared * kDim;
        const double score =
            of.step.scale * std::inner_product(key, key + kDim, q.data() + h * kDim, 0.0);
        const double c = of.step.softcap;
        p.push_back(std::exp(c > 0 ? c * std::tanh(score / c) : score));
        total += p.back();
      }
      for (int64_t j = first; j < seen; ++j) {
        for (int64_t i = 0; i < kValueDim; ++i) {
          mixed[h * kValueDim + i] += p[j - first] / total * values[j][shared * kValueDim + i];
        }
      }
    }
    return of.o.times(mixed);
  }
};

TEST_P(TokenStep, AttentionGoesFromTheResidualStreamBackToIt) {
  for (int variant = 0; variant < 6; ++variant) {
    Attention attention;
    AttentionStep& step = attention.step;
    if (variant == 1) step.q_norm = step.k_norm = attention.head_norm;
    if (variant == 2) step.q_norm = attention.whole_norm;
    if (variant == 3) step.interleaved = true;
    if (variant == 4) {
      step.window = 3;
      step.softcap = 2.0f;
    }
    if (variant == 5) step.sinks = attention.sinks.data();
    check_step(step);
    Reference reference{attention, {}, {}};
    for (int64_t t = 0; t < Attention::kRoom; ++t) {
      const auto x = normal(Attention::kHidden, 100 + static_cast<uint64_t>(t), 3.0);
      std::vector<float> cos, sin;
      for (int64_t i = 0; i < Attention::kHalf; ++i) {
        cos.push_back(std::cos(static_cast<float>(t) / static_cast<float>(i + 1)));
        sin.push_back(std::sin(static_cast<float>(t) / static_cast<float>(i + 1)));
      }
      TokenAngles angles{cos.data(), sin.data(), Attention::kHalf};
      if (variant == 0) angles = {};
      const Row got = attention.run(x, angles, t);
      SCOPED_TRACE(::testing::Message() << "variant " << variant << ", token " << t);
      expect_near(reference.token(x, angles), got);
    }
  }
}

TEST_P(TokenStep, ExpertsAddToTheSumOfBothRows) {
  constexpr int64_t kHidden = 37, kInter = 21, kExperts = 5, kTop = 2;
  const Matrix router(kExperts, kHidden, 1);
  std::vector<Matrix> gates, ups, downs;  // the last of each is the shared expert
  for (uint64_t e = 0; e <= kExperts; ++e) {
    gates.emplace_back(kInter, kHidden, 100 + 10 * e);
    ups.emplace_back(kInter, kHidden, 102 + 10 * e);
    downs.emplace_back(kHidden, kInter, 104 + 10 * e);
  }
  const auto bank_of = [](const std::vector<Matrix>& of, size_t first, size_t count) {
    std::vector<PackedWeight::Member> members;
    for (size_t e = first; e < first + count; ++e) members.push_back({&of[e].packed, 0});
    return PackedWeight::gather(members);
  };
  const PackedWeight gate = bank_of(gates, 0, kExperts), up = bank_of(ups, 0, kExperts),
                     down = bank_of(downs, 0, kExperts);
  ExpertBank shared;
  shared.gate = &gates.back().packed;
  shared.up = &ups.back().packed;
  shared.down = &downs.back().packed;
  const auto weight = normal(kHidden, 50), bias = normal(kExperts, 51);
  ExpertsStep step;
  step.norm = {weight.data(), kHidden, 0.0f, 1e-6f};
  step.router = router.view();
  step.rule.score = Score::kSigmoid;
  step.rule.top_k = kTop;
  step.select_bias = bias.data();
  step.experts.gate = &gate;
  step.experts.up = &up;
  step.experts.down = &down;
  const Matrix shared_gate(1, kHidden, 60);
  for (const int variant : {0, 1, 2}) {
    const bool beside = variant > 0;
    step.shared = beside ? std::optional(shared) : std::nullopt;
    step.shared_gate = variant == 2 ? std::optional(shared_gate.view()) : std::nullopt;
    check_step(step);
    for (uint64_t t = 0; t < 9; ++t) {
      const auto x = normal(kHidden, 200 + t), added = normal(kHidden, 300 + t);
      int32_t chosen[kTop];
      float by[kTop];
      std::vector<float> out(kHidden);
      experts_step(step, x.data(), added.data(), chosen, by, out.data());

      Row expected(kHidden);
      for (int64_t i = 0; i < kHidden; ++i) expected[i] = static_cast<double>(x[i]) + added[i];
      Row normed = expected;
      norm(step.norm, normed, 0, kHidden);
      const testing::RoutedToken routed =
          testing::route_token(router.times(normed), step.rule, Row(bias.begin(), bias.end()), {});
      const auto add = [&](size_t e, double factor) {
        const auto plain = [&](const Matrix& m, const Row& row) {  // experts have no biases here
          Row y = m.times(row);
          for (int64_t n = 0; n < m.rows; ++n) y[n] -= m.bias[n];
          return y;
        };
        Row h = plain(gates[e], normed);
        const Row u = plain(ups[e], normed);
        for (size_t i = 0; i < h.size(); ++i) h[i] = h[i] / (1 + std::exp(-h[i])) * u[i];
        const Row y = plain(downs[e], h);
        for (int64_t i = 0; i < kHidden; ++i) expected[i] += factor * y[i];
      };
      for (int64_t s = 0; s < kTop; ++s) {
        ASSERT_EQ(routed.experts[s], chosen[s]);
        ASSERT_NEAR(routed.weights[s], by[s], 1e-5);
        add(static_cast<size_t>(chosen[s]), routed.weights[s]);
      }
      const double logit = shared_gate.times(normed)[0];
      if (beside) add(kExperts, variant == 2 ? 1 / (1 + std::exp(-logit)) : 1.0);
      expect_near(expected, {out.begin(), out.end()});
    }
  }
}

TEST(TokenStepSizes, AreChecked) {
  Attention attention;
  AttentionStep& step = attention.step;
  check_step(step);
  step.heads = 5;
  EXPECT_THROW(check_step(step), ValueError);
  step.heads = Attention::kHeads;
  step.q_norm = step.norm;  // of another size
  EXPECT_THROW(check_step(step), ValueError);
  step.q_norm.reset();
  step.o = step.q;
  EXPECT_THROW(check_step(step), ValueError);
  step.o = attention.o.view();

  const auto x = normal(Attention::kHidden, 1);
  EXPECT_THROW(attention.run(x, {}, Attention::kRoom), ValueError);
  EXPECT_THROW(attention.run(x, {}, -1), ValueError);
  std::vector<float> out(Attention::kHidden);
  EXPECT_THROW(attention_step(step, x.data(), {}, attention.cache(attention.values, 12),
                              attention.cache(attention.values, 12), 0, out.data()),
               ValueError);

  const PackedWeight one({Format::kF32}, 1, 4, Attention::kHidden);
  ExpertsStep experts;
  experts.router = attention.q.view();
  experts.rule.top_k = 2;
  experts.experts.up = &attention.k.packed;  // one expert
  EXPECT_THROW(check_step(experts), ValueError);
  const LinearView router{&one};
  const PackedWeight four({Format::kF32}, 4, 3, Attention::kHidden);
  experts.router = router;
  experts.experts.up = &four;
  check_step(experts);
  experts.shared_gate = router;  // without a shared expert, and of four rows
  EXPECT_THROW(check_step(experts), ValueError);
}

}  // namespace
}  // namespace moe
