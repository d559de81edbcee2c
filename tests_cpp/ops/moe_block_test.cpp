#include "moe/ops/moe_block.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "moe/base/check.h"
#include "moe/base/half.h"
#include "moe/base/parallel.h"
#include "support/isas.h"
#include "support/reference.h"
#include "support/tolerance.h"

namespace moe {
namespace {

using testing::normal;

// A layer's weights with everything it may have.
struct Layer {
  PackedWeight gate, up, down;
  std::vector<float> gate_bias, up_bias, down_bias;
  ActivationSpec activation;
  bool gated = true, biased = false;

  Layer(std::vector<Format> formats, int64_t experts, int64_t inter, int64_t hidden, uint64_t seed)
      : gate(formats, experts, inter, hidden),
        up(formats, experts, inter, hidden),
        down(formats, experts, hidden, inter),
        gate_bias(normal(experts * inter, seed + 7)),
        up_bias(normal(experts * inter, seed + 8)),
        down_bias(normal(experts * hidden, seed + 9)) {
    for (int64_t e = 0; e < experts; ++e) {
      const auto s = seed + 10 * static_cast<uint64_t>(e);
      gate.fill(e, normal(inter * hidden, s + 1, 1 / std::sqrt(hidden)).data(), DType::kF32);
      up.fill(e, normal(inter * hidden, s + 2, 1 / std::sqrt(hidden)).data(), DType::kF32);
      down.fill(e, normal(inter * hidden, s + 3, 1 / std::sqrt(inter)).data(), DType::kF32);
    }
  }
  ExpertBank bank() const {
    ExpertBank b;
    b.gate = gated ? &gate : nullptr;
    b.up = &up;
    b.down = &down;
    if (biased) {
      b.gate_bias = gate_bias.data();
      b.up_bias = up_bias.data();
      b.down_bias = down_bias.data();
    }
    b.activation = activation;
    return b;
  }

  std::vector<double> times(const PackedWeight& w, int64_t e, const std::vector<double>& x,
                            const std::vector<float>& bias) const {
    std::vector<float> values(static_cast<size_t>(w.rows() * w.cols()));
    w.unpack(e, values.data());
    std::vector<double> y(static_cast<size_t>(w.rows()));
    for (int64_t n = 0; n < w.rows(); ++n) {
      y[n] = biased ? bias[e * w.rows() + n] : 0.0;
      for (int64_t k = 0; k < w.cols(); ++k) y[n] += values[n * w.cols() + k] * x[k];
    }
    return y;
  }
  // The definition, one token through one expert.
  std::vector<double> expert(int64_t e, const std::vector<double>& x) const {
    const auto act = [&](double v) {
      switch (activation.kind) {
        case Activation::kRelu2:
          return v > 0 ? v * v : 0.0;
        case Activation::kSwigluOai:
          return v / (1.0 + std::exp(-1.702 * v));
        default:
          return v / (1.0 + std::exp(-v));
      }
    };
    auto h = times(up, e, x, up_bias);
    const double limit = activation.limit > 0 ? activation.limit : INFINITY;
    if (gated) {
      const auto g = times(gate, e, x, gate_bias);
      for (size_t i = 0; i < h.size(); ++i) {
        const double u = std::min(std::max(h[i], -limit), limit);
        h[i] = act(std::min(g[i], limit)) * (activation.kind == Activation::kSwigluOai ? u + 1 : u);
      }
    } else {
      for (double& v : h) v = act(v);
    }
    return times(down, e, h, down_bias);
  }
};

struct Routing {
  std::vector<int32_t> experts;
  std::vector<float> weights;
  int64_t tokens;
  int k;
  bool weighs_input = false;

  AssignmentView view() const { return {experts.data(), weights.data(), tokens, k, weighs_input}; }
};

// Distinct experts for every token, every fifth slot empty where `drops`.
Routing routing(int64_t tokens, int k, int64_t experts, bool drops, uint64_t seed) {
  Routing r{{}, {}, tokens, k};
  for (int64_t t = 0; t < tokens; ++t) {
    const auto start = static_cast<int64_t>(random_bits(seed, static_cast<uint64_t>(t)) % experts);
    for (int s = 0; s < k; ++s) {
      const bool empty = drops && (t * k + s) % 5 == 0;
      r.experts.push_back(empty ? -1 : static_cast<int32_t>((start + s) % experts));
      r.weights.push_back(static_cast<float>(0.1 + random_uniform(seed + 1, t * k + s)));
    }
  }
  return r;
}

std::vector<float> run(const std::vector<float>& x, const Routing& r, const Layer& layer,
                       const SharedExpert* shared, Compute compute) {
  const int64_t hidden = layer.up.cols();
  std::vector<float> out(static_cast<size_t>(r.tokens * hidden), NAN);
  moe_ffn({x.data(), r.tokens, hidden}, r.view(), layer.bank(), shared, compute,
          {out.data(), r.tokens, hidden});
  return out;
}

std::vector<double> reference(const std::vector<float>& x, const Routing& r, const Layer& layer,
                              const Layer* shared, const float* scale) {
  const int64_t hidden = layer.up.cols();
  std::vector<double> out;
  for (int64_t t = 0; t < r.tokens; ++t) {
    const std::vector<double> token(x.begin() + t * hidden, x.begin() + (t + 1) * hidden);
    std::vector<double> sum(static_cast<size_t>(hidden), 0.0);
    for (int s = 0; s < r.k; ++s) {
      const int32_t e = r.experts[t * r.k + s];
      if (e < 0) continue;
      const double w = r.weights[t * r.k + s];
      auto input = token;
      for (double& v : input) v *= r.weighs_input ? w : 1.0;
      const auto y = layer.expert(e, input);
      for (int64_t i = 0; i < hidden; ++i) sum[i] += (r.weighs_input ? 1.0 : w) * y[i];
    }
    if (shared != nullptr) {
      const auto y = shared->expert(0, token);
      for (int64_t i = 0; i < hidden; ++i) sum[i] += (scale != nullptr ? scale[t] : 1.0f) * y[i];
    }
    out.insert(out.end(), sum.begin(), sum.end());
  }
  return out;
}

class MoeBlock : public testing::EveryIsa {};

TEST_P(MoeBlock, AgreesWithTheDefinitionInEveryFormat) {
  for (int f = 0; f < kFormatCount; ++f) {
    for (const auto& [tokens, hidden, inter] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 64, 32}, {7, 72, 40}, {33, 129, 65}}) {
      const Layer layer({static_cast<Format>(f)}, 5, inter, hidden, 1);
      const auto x = normal(tokens * hidden, 3);
      const Routing r = routing(tokens, 2, 5, false, 4);
      const auto expected = reference(x, r, layer, nullptr, nullptr);
      for (const Compute compute : {Compute::kExact, Compute::kFast}) {
        const Dot dot = choose_dot(static_cast<Format>(f), compute, 1, 1);
        EXPECT_LE(testing::nmse(run(x, r, layer, nullptr, compute), expected),
                  testing::product_bound(dot))
            << format_info(static_cast<Format>(f)).name << " " << tokens << " tokens, dot "
            << static_cast<int>(dot);
      }
    }
  }
}

TEST_P(MoeBlock, OtherLibrariesMemoryGivesTheSameRounded) {
  const Layer layer({Format::kF32}, 4, 24, 40, 1);
  for (const int64_t tokens : {0, 1, 9}) {
    const auto values = normal(tokens * 40, 5);
    Routing r = routing(tokens, 3, 4, true, 6);
    std::vector<bf16> x, weights;
    std::vector<f16> x16;
    for (const float v : values) x.push_back(to_bf16(v)), x16.push_back(to_f16(v));
    for (float& w : r.weights) weights.push_back(to_bf16(w)), w = to_float(weights.back());
    std::vector<int64_t> ids;
    for (const int32_t e : r.experts) ids.push_back(e < 0 ? 4 : e);
    std::vector<bf16> out(values.size());
    std::vector<f16> out16(values.size());
    moe_ffn_plain(
        {x.data(), DType::kBf16, tokens, 40, ids.data(), weights.data(), DType::kBf16, 3, false},
        layer.bank(), Compute::kAuto, out.data());
    moe_ffn_plain(
        {x16.data(), DType::kF16, tokens, 40, ids.data(), r.weights.data(), DType::kF32, 3, false},
        layer.bank(), Compute::kAuto, out16.data());
    std::vector<float> wide, wide16;
    for (const bf16 v : x) wide.push_back(to_float(v));
    for (const f16 v : x16) wide16.push_back(to_float(v));
    const auto expected = run(wide, r, layer, nullptr, Compute::kAuto);
    const auto expected16 = run(wide16, r, layer, nullptr, Compute::kAuto);
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_EQ(out[i].bits, to_bf16(expected[i]).bits);
      ASSERT_EQ(out16[i].bits, to_f16(expected16[i]).bits);
    }
    if (tokens == 0) continue;
    for (const int64_t wrong : {int64_t{-1}, int64_t{5}, int64_t{1} << 40}) {
      ids.back() = wrong;
      EXPECT_THROW(moe_ffn_plain({x.data(), DType::kBf16, tokens, 40, ids.data(), weights.data(),
                                  DType::kBf16, 3, false},
                                 layer.bank(), Compute::kAuto, out.data()),
                   ValueError);
    }
  }
}

TEST_P(MoeBlock, DegeneratePlans) {
  const Layer layer({Format::kF32}, 4, 24, 40, 1);
  for (Routing r : {routing(9, 3, 4, true, 1), routing(9, 4, 4, false, 2),
                    routing(6, 1, 1, false, 3), routing(0, 2, 4, false, 4)}) {
    const auto x = normal(r.tokens * 40, 5);
    EXPECT_LE(testing::nmse(run(x, r, layer, nullptr, Compute::kAuto),
                            reference(x, r, layer, nullptr, nullptr)),
              1e-12);
  }
  Routing nobody = routing(3, 2, 4, false, 1);
  nobody.experts.assign(6, -1);
  EXPECT_EQ(run(normal(3 * 40, 5), nobody, layer, nullptr, Compute::kAuto),
            std::vector<float>(3 * 40, 0.0f));
}

TEST_P(MoeBlock, SharedExpertsBiasesActivationsAndInputWeights) {
  const auto x = normal(11 * 40, 5);
  const Routing r = routing(11, 2, 3, true, 6);
  const auto scale = normal(11, 8);
  for (const ActivationSpec spec :
       {ActivationSpec{Activation::kSilu, 0.0f}, ActivationSpec{Activation::kSwigluOai, 0.7f},
        ActivationSpec{Activation::kSilu, 0.5f}, ActivationSpec{Activation::kRelu2, 0.0f}}) {
    for (const bool gated : {true, false}) {
      if (!gated && spec.limit > 0) continue;
      Layer layer({Format::kF32}, 3, 24, 40, 1);
      Layer shared({Format::kF32}, 1, 56, 40, 2);
      layer.activation = shared.activation = spec;
      layer.gated = shared.gated = gated;
      layer.biased = shared.biased = true;
      const SharedExpert with{shared.bank(), scale.data()};
      EXPECT_LE(testing::nmse(run(x, r, layer, &with, Compute::kAuto),
                              reference(x, r, layer, &shared, scale.data())),
                1e-12);
      Routing weighs = r;
      weighs.weighs_input = true;
      const SharedExpert unscaled{shared.bank(), nullptr};
      EXPECT_LE(testing::nmse(run(x, weighs, layer, &unscaled, Compute::kAuto),
                              reference(x, weighs, layer, &shared, nullptr)),
                1e-12);
    }
  }
}

TEST_P(MoeBlock, ATokensBytesDependOnNothingElse) {
  const int before = num_threads();
  const Layer layer({Format::kF32, Format::kBf16, Format::kInt8, Format::kF16}, 4, 72, 600, 1);
  const Layer shared({Format::kInt8}, 1, 40, 600, 2);
  const auto scale = normal(37, 8);
  const auto x = normal(37 * 600, 5);
  const Routing r = routing(37, 2, 4, true, 6);
  const SharedExpert with{shared.bank(), scale.data()};
  for (const Compute compute : {Compute::kExact, Compute::kFast}) {
    set_num_threads(2);
    const auto all = run(x, r, layer, &with, compute);
    for (const int threads : {1, 3}) {
      set_num_threads(threads);
      EXPECT_EQ(run(x, r, layer, &with, compute), all) << threads;
    }
    for (int64_t t = 0; t < r.tokens; ++t) {
      const Routing one{{r.experts.begin() + 2 * t, r.experts.begin() + 2 * t + 2},
                        {r.weights.begin() + 2 * t, r.weights.begin() + 2 * t + 2},
                        1,
                        2};
      const SharedExpert its{shared.bank(), scale.data() + t};
      const std::vector<float> token(x.begin() + 600 * t, x.begin() + 600 * (t + 1));
      EXPECT_EQ(run(token, one, layer, &its, compute),
                std::vector<float>(all.begin() + 600 * t, all.begin() + 600 * (t + 1)))
          << t;
    }
  }
  set_num_threads(before);
}

TEST_P(MoeBlock, DamageStaysWhereItIs) {
  Layer layer({Format::kBf16}, 3, 24, 40, 1);
  auto x = normal(6 * 40, 5);
  Routing r{{0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1}, std::vector<float>(12, 0.5f), 6, 2};
  const auto clean = run(x, r, layer, nullptr, Compute::kAuto);
  // Expert 2 is full of NaN and chosen by nobody; token 3 holds one.
  layer.up.fill(2, std::vector<float>(24 * 40, NAN).data(), DType::kF32);
  x[3 * 40 + 1] = NAN;
  const auto out = run(x, r, layer, nullptr, Compute::kAuto);
  for (int i = 0; i < 6 * 40; ++i) {
    if (i / 40 == 3) {
      EXPECT_TRUE(std::isnan(out[i]));
    } else {
      EXPECT_EQ(out[i], clean[i]);
    }
  }
}

MOE_EVERY_ISA(MoeBlock);

TEST(MoeBlockErrors, NameWhatDoesNotFit) {
  const Layer layer({Format::kF32}, 3, 24, 40, 1);
  const auto x = normal(2 * 40, 5);
  std::vector<float> out(2 * 40);
  Routing r = routing(2, 2, 3, false, 1);
  r.experts[3] = 3;
  EXPECT_THROW(run(x, r, layer, nullptr, Compute::kAuto), ValueError);
  r.experts[3] = -2;
  EXPECT_THROW(run(x, r, layer, nullptr, Compute::kAuto), ValueError);
  r = routing(3, 2, 3, false, 1);
  EXPECT_THROW(moe_ffn({x.data(), 2, 40}, r.view(), layer.bank(), nullptr, Compute::kAuto,
                       {out.data(), 2, 40}),
               ValueError);
  r = routing(2, 2, 3, false, 1);
  EXPECT_THROW(moe_ffn({x.data(), 2, 39}, r.view(), layer.bank(), nullptr, Compute::kAuto,
                       {out.data(), 2, 39}),
               ValueError);
  const Layer wide({Format::kF32}, 1, 24, 48, 1);
  const SharedExpert shared{wide.bank(), nullptr};
  EXPECT_THROW(run(x, r, layer, &shared, Compute::kAuto), ValueError);
}

}  // namespace
}  // namespace moe
