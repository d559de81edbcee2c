#pragma once
// Parts of a decoder's layer for one token, in double.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "moe/ops/token_parts.h"
#include "support/reference.h"

namespace moe::testing {

using Row = std::vector<double>;

/// A matrix of floats as the core holds it, and as it is.
struct Matrix {
  int64_t rows, cols;
  std::vector<float> values, bias;
  PackedWeight packed;

  Matrix(int64_t rows_, int64_t cols_, uint64_t seed)
      : rows(rows_),
        cols(cols_),
        values(normal(rows_ * cols_, seed, 1 / std::sqrt(cols_))),
        bias(normal(rows_, seed + 1)),
        packed({Format::kF32}, 1, rows_, cols_) {
    packed.fill(0, values.data(), DType::kF32);
  }
  LinearView view() const { return {&packed, bias.data()}; }
  Row times(const Row& x) const {
    Row y(bias.begin(), bias.end());
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t k = 0; k < cols; ++k) y[n] += static_cast<double>(values[n * cols + k]) * x[k];
    }
    return y;
  }
};

/// x[begin, end) divided by its root mean square, times weight + offset.
inline void norm(const RmsNormView& by, Row& x, int64_t begin, int64_t end) {
  double squares = 0;
  for (int64_t i = begin; i < end; ++i) squares += x[i] * x[i];
  const double scale = 1 / std::sqrt(squares / static_cast<double>(end - begin) + by.eps);
  for (int64_t i = begin; i < end; ++i) {
    x[i] *= scale * (by.weight != nullptr ? by.weight[i - begin] + by.offset : 1.0);
  }
}

inline void expect_near(const Row& expected, const Row& got) {
  ASSERT_EQ(expected.size(), got.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(expected[i], got[i], 2e-5) << i;
}

}  // namespace moe::testing
