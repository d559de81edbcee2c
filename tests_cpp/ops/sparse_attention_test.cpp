#include "moe/ops/sparse_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "moe/base/check.h"
#include "moe/base/half.h"
#include "support/isas.h"
#include "support/reference.h"
#include "support/tolerance.h"

namespace moe {
namespace {

using testing::normal;

class SparseAttention : public testing::EveryIsa {};
MOE_EVERY_ISA(SparseAttention);

constexpr int64_t kTokens = 3, kHeads = 5, kDim = 21, kTail = 6, kWidth = 9;

/// Two sources, 7 and 12 rows, and a selection with gaps.
struct Problem {
  std::vector<float> q = normal(kTokens * kHeads * kDim, 1);
  std::vector<float> tails = normal(kTokens * kHeads * kTail, 2);
  std::vector<float> first = normal(7 * (kDim + kTail), 3);
  std::vector<float> second = normal(12 * (kDim + kTail), 4);
  std::vector<float> sinks = normal(kHeads, 5);
  std::vector<int32_t> selected = {0,  1,  6,  7,  18, 12, -1, -1, -1,  //
                                   -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                   3,  -1, 9,  10, 11, 12, 13, -1, 2};
  HeadsView sources[2] = {{first.data(), DType::kF32, 7, 1, kDim + kTail, kDim + kTail, 0},
                          {second.data(), DType::kF32, 12, 1, kDim + kTail, kDim + kTail, 0}};

  SparseAttentionInputs inputs() {
    SparseAttentionInputs in;
    in.queries = {q.data(), DType::kF32, kTokens, kHeads, kDim, kHeads * kDim, kDim};
    in.query_tails = {tails.data(), DType::kF32, kTokens, kHeads, kTail, kHeads * kTail, kTail};
    in.sources = sources;
    in.source_count = 2;
    in.value_dim = kDim;
    in.selected = selected.data();
    in.width = kWidth;
    in.scale = 0.3f;
    return in;
  }
  const float* row(int32_t r) const {
    return r < 7 ? first.data() + r * (kDim + kTail) : second.data() + (r - 7) * (kDim + kTail);
  }
  /// The definition, in double.
  std::vector<double> reference(int64_t t, int64_t h, bool with_sinks) const {
    std::vector<double> weights, out(kDim, 0.0);
    std::vector<int32_t> rows;
    double sum = with_sinks ? std::exp(static_cast<double>(sinks[h])) : 0.0;
    for (int64_t i = 0; i < kWidth; ++i) {
      const int32_t r = selected[t * kWidth + i];
      if (r < 0) continue;
      double dot = 0.0;
      for (int64_t d = 0; d < kDim; ++d) dot += q[(t * kHeads + h) * kDim + d] * row(r)[d];
      for (int64_t d = 0; d < kTail; ++d) {
        dot += tails[(t * kHeads + h) * kTail + d] * row(r)[kDim + d];
      }
      rows.push_back(r);
      weights.push_back(std::exp(0.3 * dot));
      sum += weights.back();
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      for (int64_t d = 0; d < kDim; ++d) out[d] += weights[i] / sum * row(rows[i])[d];
    }
    return out;
  }
};

TEST_P(SparseAttention, IsTheSoftmaxOverTheSelectedRows) {
  Problem p;
  for (const bool with_sinks : {false, true}) {
    SparseAttentionInputs in = p.inputs();
    in.sinks = with_sinks ? p.sinks.data() : nullptr;
    std::vector<float> out(kTokens * kHeads * kDim, 7.0f);
    sparse_attention("sparse", in, out.data());
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t h = 0; h < kHeads; ++h) {
        const auto wanted = p.reference(t, h, with_sinks);
        for (int64_t d = 0; d < kDim; ++d) {
          ASSERT_NEAR(out[(t * kHeads + h) * kDim + d], wanted[d], 1e-5) << t << " " << h;
        }
      }
    }
  }
}

TEST_P(SparseAttention, AQueryIsItsOwnAndWhatItDoesNotSelectIsNotRead) {
  Problem p;
  std::vector<float> together(kTokens * kHeads * kDim), alone(kHeads * kDim);
  sparse_attention("sparse", p.inputs(), together.data());
  for (int64_t i = 0; i < kDim; ++i) {
    p.first[5 * (kDim + kTail) + i] = std::numeric_limits<float>::quiet_NaN();  // nobody's row
  }
  for (int64_t t = 0; t < kTokens; ++t) {
    SparseAttentionInputs in = p.inputs();
    in.queries.data = p.q.data() + t * kHeads * kDim;
    in.query_tails.data = p.tails.data() + t * kHeads * kTail;
    in.queries.tokens = in.query_tails.tokens = 1;
    in.selected += t * kWidth;
    sparse_attention("sparse", in, alone.data());
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + t * kHeads * kDim)) << t;
  }
}

TEST_P(SparseAttention, ReadsHalfPrecisionRows) {
  Problem p;
  std::vector<bf16> narrow;
  for (float& x : p.second) {
    narrow.push_back(to_bf16(x));
    x = to_float(narrow.back());
  }
  std::vector<float> wide(kHeads * kDim), half(kHeads * kDim);
  std::vector<int32_t> rows = {1, 3, 11};
  SparseAttentionInputs in = p.inputs();
  in.queries.tokens = in.query_tails.tokens = 1;
  in.selected = rows.data();
  in.width = 3;
  in.source_count = 1;
  in.sources = &p.sources[1];
  sparse_attention("sparse", in, wide.data());
  const HeadsView source = {narrow.data(), DType::kBf16, 12, 1, kDim + kTail, kDim + kTail, 0};
  in.sources = &source;
  sparse_attention("sparse", in, half.data());
  const bool exact = testing::attention_bound(true) == testing::attention_bound(false);
  for (size_t i = 0; i < wide.size(); ++i) EXPECT_NEAR(wide[i], half[i], exact ? 1e-6 : 3e-5);
}

TEST(SparseAttentionErrors, NameTheRowThatIsNotThere) {
  Problem p;
  std::vector<float> out(kTokens * kHeads * kDim);
  for (const int32_t row : {19, -2}) {
    p.selected[2 * kWidth] = row;
    try {
      sparse_attention("sparse", p.inputs(), out.data());
      FAIL() << row;
    } catch (const ValueError& e) {
      EXPECT_NE(std::string(e.what()).find("query 2 selects row " + std::to_string(row)),
                std::string::npos);
    }
  }
  p.selected[2 * kWidth] = 0;
  p.sources[1].dim = 4;
  EXPECT_THROW(sparse_attention("sparse", p.inputs(), out.data()), ValueError);
}

}  // namespace
}  // namespace moe
