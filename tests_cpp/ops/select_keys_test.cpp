#include "moe/ops/select_keys.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <vector>

#include "moe/base/check.h"
#include "moe/base/half.h"
#include "moe/base/parallel.h"
#include "support/isas.h"
#include "support/reference.h"

namespace moe {
namespace {

using testing::normal;

class SelectKeys : public testing::EveryIsa {};
MOE_EVERY_ISA(SelectKeys);

/// A problem with its memory; keys in float32 or, rounded, in 16 bits.
struct Problem {
  int64_t queries, heads, dim, keys, k;
  DType dtype;
  std::vector<float> q, w, rows;
  std::vector<bf16> narrow;
  std::vector<f16> half;
  std::vector<int64_t> visible;

  Problem(std::array<int64_t, 5> sizes, uint32_t seed, DType dtype_ = DType::kF32)
      : queries(sizes[0]),
        heads(sizes[1]),
        dim(sizes[2]),
        keys(sizes[3]),
        k(sizes[4]),
        dtype(dtype_) {
    q = normal(queries * heads * dim, seed);
    w = normal(queries * heads, seed + 1);
    rows = normal(keys * dim, seed + 2);
    for (float& x : rows) {
      narrow.push_back(to_bf16(x));
      half.push_back(to_f16(x));
      if (dtype == DType::kBf16) x = to_float(narrow.back());
      if (dtype == DType::kF16) x = to_float(half.back());
    }
    for (int64_t t = 0; t < queries; ++t) visible.push_back(keys - queries + t + 1);
  }
  SelectKeysInputs inputs() const {
    SelectKeysInputs in;
    in.queries = {q.data(), DType::kF32, queries, heads, dim, heads * dim, dim};
    in.weights = w.data();
    in.keys = {rows.data(), dtype, keys, 1, dim, dim, dim};
    if (dtype == DType::kBf16) in.keys.data = narrow.data();
    if (dtype == DType::kF16) in.keys.data = half.data();
    in.visible = visible.data();
    in.k = k;
    return in;
  }
  std::vector<int32_t> run() const {
    std::vector<int32_t> out(queries * k, 99);
    select_keys(inputs(), out.data());
    return out;
  }
  double score(int64_t t, int64_t j) const {
    double total = 0.0;
    for (int64_t h = 0; h < heads; ++h) {
      double dot = 0.0;
      for (int64_t d = 0; d < dim; ++d) {
        dot += static_cast<double>(q[(t * heads + h) * dim + d]) * rows[j * dim + d];
      }
      total += w[t * heads + h] * std::max(0.0, dot);
    }
    return total;
  }
};

TEST_P(SelectKeys, TakesTheBestOfWhatAQuerySees) {
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    for (const auto& sizes : std::vector<std::array<int64_t, 5>>{{1, 1, 1, 1, 1},
                                                                 {3, 4, 16, 70, 9},
                                                                 {5, 7, 19, 129, 64},
                                                                 {2, 17, 40, 2100, 300},
                                                                 {2, 40, 64, 300, 64},
                                                                 {4, 3, 8, 4, 6}}) {
      const Problem p(sizes, static_cast<uint32_t>(sizes[3]), dtype);
      const auto out = p.run();
      for (int64_t t = 0; t < p.queries; ++t) {
        const int64_t k = p.k, kept = std::min(k, p.visible[t]);
        const int32_t* row = out.data() + t * k;
        double worst_in = std::numeric_limits<double>::infinity(), best_out = -worst_in;
        for (int64_t j = 0, at = 0; j < p.visible[t]; ++j) {
          const bool in = at < kept && row[at] == j;
          if (in) ++at;
          worst_in = in ? std::min(worst_in, p.score(t, j)) : worst_in;
          best_out = in ? best_out : std::max(best_out, p.score(t, j));
          if (j + 1 == p.visible[t]) {
            ASSERT_EQ(at, kept) << "not ascending, or not visible";
          }
        }
        ASSERT_GE(worst_in, best_out - 1e-4) << p.keys << " keys, query " << t;
        for (int64_t i = kept; i < k; ++i) ASSERT_EQ(row[i], -1);
      }
    }
  }
}

TEST_P(SelectKeys, AQuerysChoiceIsItsOwnWhateverTheBatchAndTheThreads) {
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    Problem p({9, 5, 24, 3000, 40}, 7, dtype);
    const int before = num_threads();
    set_num_threads(1);
    const auto together = p.run();
    for (const int threads : {2, 3}) {
      set_num_threads(threads);
      EXPECT_EQ(p.run(), together);
    }
    set_num_threads(before);
    for (int64_t t = 0; t < p.queries; ++t) {
      SelectKeysInputs in = p.inputs();
      in.queries.data = p.q.data() + t * p.heads * p.dim;
      in.queries.tokens = 1;
      in.weights += t * p.heads;
      in.visible += t;
      in.keys.tokens = p.visible[t];  // later keys are not there yet
      std::vector<int32_t> alone(p.k);
      select_keys(in, alone.data());
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + t * p.k)) << t;
    }
  }
}

TEST_P(SelectKeys, EqualScoresGoToTheEarlierKeyAndNanToNone) {
  Problem p({1, 1, 4, 6, 3}, 1);
  p.visible = {6};
  std::fill(p.q.begin(), p.q.end(), 1.0f);
  p.w = {1.0f};
  std::fill(p.rows.begin(), p.rows.end(), -1.0f);  // all below zero: every score is 0
  EXPECT_EQ(p.run(), (std::vector<int32_t>{0, 1, 2}));
  p.rows[4 * 4] = 9.0f;
  EXPECT_EQ(p.run(), (std::vector<int32_t>{0, 1, 4}));
  p.w = {std::numeric_limits<float>::quiet_NaN()};
  EXPECT_EQ(p.run(), (std::vector<int32_t>{0, 1, 2}));
  p.visible = {0};
  EXPECT_EQ(p.run(), (std::vector<int32_t>{-1, -1, -1}));
}

TEST(SelectKeysErrors, NameWhatDoesNotFit) {
  Problem p({2, 2, 8, 5, 2}, 3);
  std::vector<int32_t> out(4);
  SelectKeysInputs in = p.inputs();
  in.keys.dim = 4;
  EXPECT_THROW(select_keys(in, out.data()), ValueError);
  in = p.inputs();
  in.k = 0;
  EXPECT_THROW(select_keys(in, out.data()), ValueError);
  in = p.inputs();
  p.visible[1] = 6;
  EXPECT_THROW(select_keys(in, out.data()), ValueError);
}

}  // namespace
}  // namespace moe
