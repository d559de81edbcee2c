#include "moe/ops/norm.h"

#include <gtest/gtest.h>

#include "support/isas.h"
#include "support/reference.h"

namespace moe {
namespace {

using testing::normal;

class Norm : public testing::EveryIsa {};
MOE_EVERY_ISA(Norm);

struct Case {
  bool layer, weight, bias, residual;
  float offset;
};

TEST_P(Norm, AgreesWithTheReferenceForEverySizeAndPart) {
  const double eps = 1e-5;
  for (const int64_t n : {1, 2, 15, 16, 17, 63, 64, 65, 72, 127, 200, 1024}) {
    for (const Case& c :
         {Case{false, false, false, false, 0.0f}, Case{false, true, false, false, 1.0f},
          Case{false, true, false, true, 0.0f}, Case{true, true, true, false, 0.0f},
          Case{true, false, false, true, 0.0f}}) {
      const int64_t rows = 3;
      const auto x = normal(rows * n, 1, 3.0), residual = normal(rows * n, 2);
      const auto weight = normal(n, 3), bias = normal(n, 4);
      std::vector<float> sum(x.size()), out(x.size());
      NormParts parts;
      parts.weight = c.weight ? weight.data() : nullptr;
      parts.bias = c.bias ? bias.data() : nullptr;
      parts.residual = c.residual ? residual.data() : nullptr;
      parts.sum = c.residual ? sum.data() : nullptr;
      parts.offset = c.offset;
      const MatrixView<const float> view(x.data(), rows, n);
      c.layer ? layer_norm(view, parts, 1e-5f, out.data())
              : rms_norm(view, parts, 1e-5f, out.data());
      for (int64_t r = 0; r < rows; ++r) {
        std::vector<double> v(n);
        double mean = 0.0, square = 0.0;
        for (int64_t i = 0; i < n; ++i) {
          v[i] = x[r * n + i];
          if (c.residual) {
            EXPECT_EQ(x[r * n + i] + residual[r * n + i], sum[r * n + i]);
            v[i] = sum[r * n + i];
          }
          mean += c.layer ? v[i] / n : 0.0;
        }
        for (int64_t i = 0; i < n; ++i) square += (v[i] - mean) * (v[i] - mean) / n;
        for (int64_t i = 0; i < n; ++i) {
          double y = (v[i] - mean) / std::sqrt(square + eps);
          if (c.weight) y *= weight[i] + static_cast<double>(c.offset);
          if (c.bias) y += bias[i];
          ASSERT_NEAR(y, out[r * n + i], 2e-6 * std::max(1.0, std::fabs(y))) << n << " at " << i;
        }
      }
    }
  }
}

TEST_P(Norm, WorksInPlaceAndARowIsItsOwn) {
  const int64_t n = 100;
  const auto x = normal(5 * n, 6);
  std::vector<float> out(x.size()), in_place = x, alone(n);
  rms_norm({x.data(), 5, n}, {}, 1e-6f, out.data());
  rms_norm({in_place.data(), 5, n}, {}, 1e-6f, in_place.data());
  EXPECT_EQ(out, in_place);
  rms_norm({x.data() + 3 * n, 1, n}, {}, 1e-6f, alone.data());
  EXPECT_TRUE(std::equal(alone.begin(), alone.end(), out.begin() + 3 * n));
}

}  // namespace
}  // namespace moe
