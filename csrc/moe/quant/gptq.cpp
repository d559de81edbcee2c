#include "moe/quant/gptq.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/base/parallel.h"

namespace moe {

namespace {

/// Columns of a Cholesky step, and of a thread's piece of the inverse.
constexpr int64_t kFactorBlock = 64;
/// Columns whose corrections of later columns are applied together.
constexpr int64_t kLazyBlock = 128;

/// Eight sums side by side, which a compiler keeps in vectors, added in a fixed order.
double dot(const double* a, const double* b, int64_t n) {
  double sums[8] = {};
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) {
    for (int i = 0; i < 8; ++i) sums[i] += a[k + i] * b[k + i];
  }
  double sum =
      ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
  for (; k < n; ++k) sum += a[k] * b[k];
  return sum;
}

/// M with M Mᵀ = A in the lower triangle of `a` [n, n], in place. False if A is not positive
/// definite.
bool cholesky(double* a, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += kFactorBlock) {
    const int64_t end = std::min(begin + kFactorBlock, n);
    const auto row_of_block = [&](int64_t i, int64_t last) {
      for (int64_t j = begin; j < last; ++j) {
        a[i * n + j] = (a[i * n + j] - dot(a + i * n, a + j * n, j)) / a[j * n + j];
      }
    };
    for (int64_t i = begin; i < end; ++i) {
      row_of_block(i, i);
      const double square = a[i * n + i] - dot(a + i * n, a + i * n, i);
      if (!(square > 0.0) || !std::isfinite(square)) return false;
      a[i * n + i] = std::sqrt(square);
    }
    const auto below = [&](int64_t first, int64_t last) {
      for (int64_t i = end + first; i < end + last; ++i) row_of_block(i, end);
    };
    parallel_for(n - end, 16, below);
  }
  return true;
}

/// X with M X = I, lower triangular. A thread's columns do not depend on those of others.
void invert_lower(const double* m, int64_t n, double* x) {
  const auto columns = [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t begin = piece * kFactorBlock, end = std::min(begin + kFactorBlock, n);
      for (int64_t i = begin; i < n; ++i) {
        double* row = x + i * n;
        std::fill(row + begin, row + end, 0.0);
        if (i < end) row[i] = 1.0;
        for (int64_t k = begin; k < i; ++k) {
          const double factor = m[i * n + k];
          const double* other = x + k * n;
          for (int64_t j = begin; j < end; ++j) row[j] -= factor * other[j];
        }
        const double inverse = 1.0 / m[i * n + i];
        for (int64_t j = begin; j < end; ++j) row[j] *= inverse;
      }
    }
  };
  parallel_for((n + kFactorBlock - 1) / kFactorBlock, 1, columns);
}

}  // namespace

bool inverse_factor(const double* hessian, int64_t n, const int32_t* order, double damp,
                    float* factor) {
  double mean = 0.0;
  for (int64_t i = 0; i < n; ++i) mean += hessian[i * n + i] / static_cast<double>(n);
  const double added = damp * mean;
  // With rows and columns reversed, H = M Mᵀ becomes R Rᵀ with R upper triangular; U is R⁻¹.
  std::vector<double> a(static_cast<size_t>(n * n)), x(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const int64_t row = order[n - 1 - i], col = order[n - 1 - j];
      a[static_cast<size_t>(i * n + j)] = hessian[std::max(row, col) * n + std::min(row, col)];
    }
    a[static_cast<size_t>(i * n + i)] += added;
  }
  if (!cholesky(a.data(), n)) return false;
  invert_lower(a.data(), n, x.data());
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const double value = j < i ? 0.0 : x[static_cast<size_t>((n - 1 - i) * n + n - 1 - j)];
      factor[i * n + j] = static_cast<float>(value);
    }
  }
  return true;
}

void gptq_panel(const FormatInfo& format, const float* rows, int64_t cols, int64_t depth,
                const float* factor, const int32_t* order, bool refit, float* work,
                std::byte* panel) noexcept {
  float* weights = work;  // [16, depth], columns in the order of their rounding
  float* errors = weights + kPanelRows * depth;  // [columns of a lazy block, 16]
  float* block = errors + kPanelRows * kDeepestBlock;
  for (int r = 0; r < kPanelRows; ++r) {
    for (int64_t i = 0; i < cols; ++i) weights[r * depth + i] = rows[r * depth + order[i]];
    std::fill(weights + r * depth + cols, weights + (r + 1) * depth, 0.0f);
  }
  format.encode(rows, depth, panel);
  // A block that is refitted has to see all corrections: it lies within one lazy block.
  const int64_t lazy = std::max<int64_t>(kLazyBlock, format.depth);
  for (int64_t begin = 0; begin < cols; begin += lazy) {
    const int64_t end = std::min(begin + lazy, cols);
    for (int64_t i = begin; i < end; ++i) {
      if (refit && i % format.depth == 0) {
        for (int r = 0; r < kPanelRows; ++r) {
          std::copy_n(weights + r * depth + i, format.depth, block + r * format.depth);
        }
        format.encode(block, format.depth, panel + i / format.depth * format.block_bytes);
      }
      const float* later = factor + i * cols;
      float* error = errors + (i - begin) * kPanelRows;
      for (int r = 0; r < kPanelRows; ++r) {
        const float w = weights[r * depth + i];
        error[r] = (w - format.round(panel, depth, r, order[i], w)) / later[i];
        for (int64_t j = i + 1; j < end; ++j) weights[r * depth + j] -= error[r] * later[j];
      }
    }
    for (int r = 0; r < kPanelRows; ++r) {
      for (int64_t i = begin; i < end; ++i) {
        const float* later = factor + i * cols;
        const float error = errors[(i - begin) * kPanelRows + r];
        for (int64_t j = end; j < cols; ++j) weights[r * depth + j] -= error * later[j];
      }
    }
  }
}

}  // namespace moe
