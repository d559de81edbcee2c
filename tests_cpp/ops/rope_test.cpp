#include "moe/ops/rope.h"

#include <gtest/gtest.h>

#include "moe/base/check.h"
#include "support/isas.h"
#include "support/reference.h"

namespace moe {
namespace {

using testing::normal;

class Rope : public testing::EveryIsa {};
MOE_EVERY_ISA(Rope);

TEST_P(Rope, AnglesAreRightUpToAMillionPositions) {
  const int64_t half = 33;
  std::vector<float> frequencies(half);
  for (int64_t i = 0; i < half; ++i) {
    frequencies[i] = static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / half));
  }
  std::vector<int64_t> positions = {0, 1, 2, 3, 100, 4097, 131071, 1000003, 16777216};
  for (int64_t i = 0; i < 500; ++i) positions.push_back(i * 7919);
  const auto tokens = static_cast<int64_t>(positions.size());
  std::vector<float> cos(tokens * half), sin(tokens * half);
  rope_angles(positions.data(), tokens, frequencies.data(), half, 1.5f, cos.data(), sin.data());
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<float>(positions[t]) * frequencies[i];
      ASSERT_NEAR(1.5 * std::cos(angle), cos[t * half + i], 1.5e-7) << positions[t] << " " << i;
      ASSERT_NEAR(1.5 * std::sin(angle), sin[t * half + i], 1.5e-7) << positions[t] << " " << i;
    }
  }
}

TEST_P(Rope, RotatesPairsAndCopiesTheRest) {
  const int64_t tokens = 3, heads = 2;
  for (const int64_t head_dim : {2, 6, 32, 34, 64, 70, 128}) {
    for (const int64_t half : {int64_t{1}, head_dim / 4, head_dim / 2}) {
      for (const int64_t first : {int64_t{0}, head_dim - 2 * half}) {
        for (const bool interleaved : {false, true}) {
          const auto x = normal(tokens * heads * head_dim, 1);
          const auto cos = normal(tokens * half, 2), sin = normal(tokens * half, 3);
          std::vector<float> out(x.size());
          const int64_t stride = heads * head_dim;
          const RopeLayout layout{head_dim, first, half, interleaved};
          rope(x.data(), stride, tokens, heads, layout, cos.data(), sin.data(), out.data(), stride);
          std::vector<float> expected = x;
          for (int64_t row = 0; row < tokens * heads; ++row) {
            for (int64_t i = 0; i < half; ++i) {
              const int64_t a = row * head_dim + first + (interleaved ? 2 * i : i);
              const int64_t b = interleaved ? a + 1 : a + half;
              const float c = cos[row / heads * half + i], s = sin[row / heads * half + i];
              expected[a] = x[a] * c - x[b] * s;
              expected[b] = x[b] * c + x[a] * s;
            }
          }
          ASSERT_EQ(expected, out) << head_dim << " " << half << " " << first << " " << interleaved;
          std::vector<float> in_place = x;
          rope(in_place.data(), stride, tokens, heads, layout, cos.data(), sin.data(),
               in_place.data(), stride);
          ASSERT_EQ(expected, in_place);
        }
      }
    }
  }
}

TEST_P(Rope, RefusesWhatDoesNotFitIntoAHead) {
  float x[8] = {};
  EXPECT_THROW(rope(x, 8, 1, 1, {8, 2, 4, false}, x, x, x, 8), ValueError);
}

}  // namespace
}  // namespace moe
