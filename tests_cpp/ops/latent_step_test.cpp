#include "moe/ops/latent_step.h"

#include <gtest/gtest.h>

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

class LatentAttention : public testing::EveryIsa {};
MOE_EVERY_ISA(LatentAttention);

constexpr int64_t kHidden = 37, kHeads = 3, kLatent = 21, kNope = 10, kRope = 6, kValue = 11,
                  kLow = 19, kWidth = kLatent + kRope, kRoom = 7;

struct Layer {
  Matrix q_a{kLow, kHidden, 1}, q_low{kHeads * (kNope + kRope), kLow, 3},
      q{kHeads * (kNope + kRope), kHidden, 5}, kv_a{kWidth, kHidden, 7},
      o{kHidden, kHeads * kValue, 9};
  std::vector<Matrix> keys_up, values_up;  // head by head; their biases are not used
  std::vector<float> weight = normal(kHidden, 11), kv_weight = normal(kLatent, 12),
                     q_weight = normal(kLow, 13), entries = std::vector<float>(kRoom * kWidth, NAN);
  PackedWeight key_up, value_up;
  RmsNormView q_norm{q_weight.data(), kLow, 0.0f, 1e-5f};
  LatentStep step;

  static PackedWeight together(const std::vector<Matrix>& of) {
    std::vector<PackedWeight::Member> members;
    for (const Matrix& m : of) members.push_back({&m.packed, 0});
    return PackedWeight::gather(members);
  }
  static std::vector<Matrix> heads(int64_t rows, int64_t cols, uint64_t seed) {
    std::vector<Matrix> all;
    for (uint64_t h = 0; h < kHeads; ++h) all.emplace_back(rows, cols, seed + 2 * h);
    return all;
  }
  explicit Layer(bool compressed)
      : keys_up(heads(kLatent, kNope, 20)),
        values_up(heads(kValue, kLatent, 40)),
        key_up(together(keys_up)),
        value_up(together(values_up)) {
    step.norm = {weight.data(), kHidden, 1.0f, 1e-6f};
    step.kv_norm = {kv_weight.data(), kLatent, 0.0f, 1e-6f};
    step.q = compressed ? q_low.view() : q.view();
    if (compressed) step.q_a = q_a.view();
    if (compressed) step.q_norm = q_norm;
    step.kv_a = kv_a.view();
    step.o = o.view();
    step.key_up = &key_up;
    step.value_up = &value_up;
    step.scale = 0.4f;
  }
  TokenCache cache() { return {{entries.data(), DType::kF32, kRoom, 1, kWidth, kWidth, kWidth}}; }
};

// Head by head with keys and values expanded, as section 2.1 has it before absorption.
struct Reference {
  const Layer& of;
  std::vector<Row> latents, rotated;

  void rotate(double* x, const TokenAngles& angles) const {
    for (int64_t i = 0; i < angles.half; ++i) {
      double& a = x[of.step.interleaved ? 2 * i : i];
      double& b = x[of.step.interleaved ? 2 * i + 1 : angles.half + i];
      const double was = a;
      a = was * angles.cos[i] - b * angles.sin[i];
      b = b * angles.cos[i] + was * angles.sin[i];
    }
  }
  static Row plain(const Matrix& m, const Row& x) {
    Row y = m.times(x);
    for (int64_t n = 0; n < m.rows; ++n) y[n] -= m.bias[n];
    return y;
  }
  static Row transposed(const Matrix& m, const Row& x) {
    Row y(m.cols);
    for (int64_t n = 0; n < m.rows; ++n) {
      for (int64_t k = 0; k < m.cols; ++k)
        y[k] += static_cast<double>(m.values[n * m.cols + k]) * x[n];
    }
    return y;
  }
  Row token(const std::vector<float>& x, const TokenAngles& angles) {
    Row normed(x.begin(), x.end());
    norm(of.step.norm, normed, 0, kHidden);
    Row q = of.q.times(normed);
    if (of.step.q_a) {
      Row low = of.q_a.times(normed);
      norm(of.q_norm, low, 0, kLow);
      q = of.q_low.times(low);
    }
    Row entry = of.kv_a.times(normed);
    norm(of.step.kv_norm, entry, 0, kLatent);
    rotate(entry.data() + kLatent, angles);
    latents.emplace_back(entry.begin(), entry.begin() + kLatent);
    rotated.emplace_back(entry.begin() + kLatent, entry.end());
    Row mixed;
    for (int64_t h = 0; h < kHeads; ++h) {
      double* head = q.data() + h * (kNope + kRope);
      rotate(head + kNope, angles);
      Row sum(kValue);
      double total = 0;
      for (size_t j = 0; j < latents.size(); ++j) {
        const Row key = transposed(of.keys_up[h], latents[j]);
        const double score =
            std::inner_product(key.begin(), key.end(), head, 0.0) +
            std::inner_product(rotated[j].begin(), rotated[j].end(), head + kNope, 0.0);
        const double p = std::exp(of.step.scale * score);
        const Row value = plain(of.values_up[h], latents[j]);
        for (int64_t i = 0; i < kValue; ++i) sum[i] += p * value[i];
        total += p;
      }
      for (const double v : sum) mixed.push_back(v / total);
    }
    return of.o.times(mixed);
  }
};

TEST_P(LatentAttention, IsAttentionOverExpandedKeysAndValues) {
  for (int variant = 0; variant < 4; ++variant) {
    Layer layer(variant % 2 == 1);
    layer.step.interleaved = variant < 2;
    check_step(layer.step);
    Reference reference{layer, {}, {}};
    for (int64_t t = 0; t < kRoom; ++t) {
      const auto x = normal(kHidden, 100 + static_cast<uint64_t>(t), 3.0);
      float cos[kRope / 2], sin[kRope / 2];
      for (int i = 0; i < kRope / 2; ++i) {
        cos[i] = std::cos(static_cast<float>(t) / static_cast<float>(i + 1));
        sin[i] = std::sin(static_cast<float>(t) / static_cast<float>(i + 1));
      }
      TokenAngles angles{cos, sin, kRope / 2};
      if (variant == 3) angles = {};
      std::vector<float> out(kHidden);
      latent_step(layer.step, x.data(), angles, layer.cache(), t, out.data());
      SCOPED_TRACE(::testing::Message() << "variant " << variant << ", token " << t);
      expect_near(reference.token(x, angles), {out.begin(), out.end()});
    }
  }
}

TEST(LatentStepSizes, AreChecked) {
  Layer layer(true);
  LatentStep& step = layer.step;
  check_step(step);
  step.q_a.reset();  // q has too few columns then
  EXPECT_THROW(check_step(step), ValueError);
  step.q_a = layer.q_a.view();
  step.kv_norm.size = kLatent + 1;
  EXPECT_THROW(check_step(step), ValueError);
  step.kv_norm.size = kLatent;
  step.value_up = &layer.key_up;
  EXPECT_THROW(check_step(step), ValueError);
  step.value_up = &layer.value_up;
  step.kv_a = layer.q.view();
  EXPECT_THROW(check_step(step), ValueError);
  step.kv_a = layer.kv_a.view();

  const auto x = normal(kHidden, 1);
  std::vector<float> out(kHidden);
  EXPECT_THROW(latent_step(step, x.data(), {}, layer.cache(), kRoom, out.data()), ValueError);
  TokenCache narrow = layer.cache();
  --narrow.rows.dim;
  EXPECT_THROW(latent_step(step, x.data(), {}, narrow, 0, out.data()), ValueError);
}

}  // namespace
}  // namespace moe
