#include "moe/ops/kv_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "moe/base/check.h"
#include "moe/base/half.h"
#include "support/isas.h"
#include "support/reference.h"

namespace moe {
namespace {

using testing::normal;

class KvCache : public testing::EveryIsa {};
MOE_EVERY_ISA(KvCache);

/// Rows [tokens][heads][dim] and a head-by-head place for them, with room behind each row's head.
struct Place {
  int64_t tokens, heads, dim, capacity = tokens + 3;
  std::vector<float> x = normal(tokens * heads * dim, 5);

  HeadsView rows() const { return {x.data(), DType::kF32, tokens, heads, dim, heads * dim, dim}; }
  HeadsView kept(void* data, DType dtype) const {
    return {data, dtype, tokens, heads, dim, dim, capacity * dim};
  }
  int64_t size() const { return heads * capacity * dim; }
  /// Where element (t, h, i) is kept.
  int64_t at(int64_t t, int64_t h, int64_t i) const { return (h * capacity + t) * dim + i; }
  float value(int64_t t, int64_t h, int64_t i) const { return x[(t * heads + h) * dim + i]; }
};

TEST_P(KvCache, RoundsToNearest) {
  for (const int64_t dim : {1, 7, 16, 33, 128}) {
    for (const int64_t tokens : {0, 1, 5, 300}) {
      Place place{tokens, 3, dim};
      std::vector<float> f32(place.size());
      std::vector<bf16> b16(place.size());
      std::vector<f16> h16(place.size());
      keep_rows(place.rows(), {place.kept(f32.data(), DType::kF32)});
      keep_rows(place.rows(), {place.kept(b16.data(), DType::kBf16)});
      keep_rows(place.rows(), {place.kept(h16.data(), DType::kF16)});
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t h = 0; h < 3; ++h) {
          for (int64_t i = 0; i < dim; ++i) {
            const float value = place.value(t, h, i);
            ASSERT_EQ(f32[place.at(t, h, i)], value);
            ASSERT_EQ(b16[place.at(t, h, i)].bits, to_bf16(value).bits);
            ASSERT_EQ(h16[place.at(t, h, i)].bits, to_f16(value).bits);
          }
        }
      }
    }
  }
}

TEST_P(KvCache, EightBitsHaveAScaleForEachRow) {
  for (const int64_t dim : {1, 7, 16, 33, 128}) {
    Place place{9, 3, dim};
    for (int64_t i = 0; i < dim; ++i) place.x[i] = 0.0f;
    for (int64_t i = 0; i < dim; ++i) place.x[(3 * 3 + 1) * dim + i] *= 1e-42f;
    place.x[(4 * 3 + 2) * dim] = std::numeric_limits<float>::infinity();
    place.x[(5 * 3 + 0) * dim + dim - 1] = std::numeric_limits<float>::quiet_NaN();
    std::vector<int8_t> codes(place.size(), 99);
    std::vector<float> scales(3 * place.capacity, -1.0f);
    keep_rows(place.rows(),
              {place.kept(codes.data(), DType::kF32), scales.data(), 1, place.capacity});
    for (int64_t t = 0; t < place.tokens; ++t) {
      for (int64_t h = 0; h < 3; ++h) {
        const float scale = scales[h * place.capacity + t];
        float top = 0.0f;
        bool finite = true;
        for (int64_t i = 0; i < dim; ++i) {
          top = std::max(top, std::abs(place.value(t, h, i)));
          finite = finite && std::isfinite(place.value(t, h, i));
        }
        ASSERT_EQ(std::isnan(scale), !finite);
        for (int64_t i = 0; i < dim; ++i) {
          const int code = codes[place.at(t, h, i)];
          if (!finite) {
            ASSERT_EQ(code, 0);
          } else {
            ASSERT_LE(std::abs(code * scale - place.value(t, h, i)), top / 253.0f + 1e-30f);
          }
        }
      }
    }
    for (int64_t h = 0; h < 3; ++h) {  // nothing behind the rows is touched
      for (int64_t t = place.tokens; t < place.capacity; ++t) {
        ASSERT_EQ(scales[h * place.capacity + t], -1.0f);
        ASSERT_EQ(codes[place.at(t, h, 0)], 99);
      }
    }
  }
}

TEST_P(KvCache, RefusesOtherShapes) {
  Place place{4, 2, 16};
  std::vector<float> out(place.size());
  HeadsView kept = place.kept(out.data(), DType::kF32);
  kept.tokens = 3;
  EXPECT_THROW(keep_rows(place.rows(), {kept}), ValueError);
}

}  // namespace
}  // namespace moe
