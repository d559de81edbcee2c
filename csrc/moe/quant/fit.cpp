#include "moe/quant/fit.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace moe {

namespace {

constexpr int kLanes = 8;
constexpr int kCandidates = 21;

// Nearest integer, ties to even, for |x| < 2^22: the compiler makes vectors of it.
inline float rounded(float x) { return (x + 12582912.0f) - 12582912.0f; }

// Sums in kLanes parts, which the compiler keeps in vectors.
struct Sum {
  float lane[kLanes] = {};
  double total() const {
    double sum = 0.0;
    for (const float v : lane) sum += v;
    return sum;
  }
};

// NaN becomes `low`.
inline float clamped(float x, float low, float high) { return std::min(std::max(low, x), high); }

// A scale that gained nothing, or none at all, leaves the best one in place.
struct BestScale {
  double gain = 0.0;
  float d = 0.0f;
  // Σ (x − d q)² = Σ x² − (Σ x q)² / Σ q² at the best d of these codes.
  void consider(double xq, double qq) {
    if (qq > 0.0 && xq * xq > gain * qq) {
      gain = xq * xq / qq;
      d = static_cast<float>(xq / qq);
    }
  }
};

}  // namespace

float signed_largest(const float* x, int n) {
  float largest = 0.0f;
  for (int i = 0; i < n; ++i) {
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  }
  return largest;
}

float fit_scale(const float* x, int n, int low, int high) {
  const float largest = signed_largest(x, n);
  if (!(std::fabs(largest) > 1e-30f)) return 0.0f;
  BestScale best;
  for (int c = 0; c < kCandidates; ++c) {
    // 0.75 … 1.35 times the scale that has the largest value on `low`.
    const float inverse =
        static_cast<float>(low) / largest * (0.75f + 0.03f * static_cast<float>(c));
    Sum xq, qq;
    for (int i = 0; i < n; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) {
        const float q =
            clamped(rounded(x[i + j] * inverse), static_cast<float>(low), static_cast<float>(high));
        xq.lane[j] += x[i + j] * q;
        qq.lane[j] += q * q;
      }
    }
    best.consider(xq.total(), qq.total());
  }
  return best.d;
}

float fit_ternary(const float* x, int n) {
  const float largest = std::fabs(signed_largest(x, n));
  if (!(largest > 1e-30f)) return 0.0f;
  BestScale best;
  // Weights above a threshold from 1/2 to 1/8 of the largest one count as ±1.
  for (int c = 0; c <= 24; ++c) {
    const float threshold = largest / (2.0f + 0.25f * static_cast<float>(c));
    double sum = 0.0;
    int count = 0;
    for (int i = 0; i < n; ++i) {
      if (std::fabs(x[i]) <= threshold) continue;
      sum += std::fabs(x[i]);
      ++count;
    }
    best.consider(sum, count);
  }
  return best.d;
}

float fit_table(const float* x, int n, const NearestTable& table) {
  const float largest = signed_largest(x, n);
  if (!(std::fabs(largest) > 1e-30f)) return 0.0f;
  BestScale best;
  for (const int end : {table.low, table.high}) {
    for (int c = 0; c < kCandidates; c += 2) {
      const float inverse =
          static_cast<float>(end) / largest * (0.75f + 0.03f * static_cast<float>(c));
      float xq = 0.0f, qq = 0.0f;
      for (int i = 0; i < n; ++i) {
        const float q = table.value[NearestTable::index(x[i] * inverse)];
        xq += x[i] * q;
        qq += q * q;
      }
      best.consider(xq, qq);
    }
    if (table.low == -table.high) break;
  }
  return best.d;
}

Affine fit_affine(const float* x, int n, int levels) {
  float low = 0.0f, high = x[0];
  for (int i = 0; i < n; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  if (!(high - low > 1e-30f)) return {0.0f, low};
  const auto top = static_cast<float>(levels);
  Affine best{(high - low) / top, low};
  double least = std::numeric_limits<double>::infinity();
  double sum_x = 0.0;
  for (int i = 0; i < n; ++i) sum_x += x[i];
  // The error, without Σ x², of x ≈ s q + m: linear in what the sums below collect.
  const auto consider = [&](double s, double m, double xq, double q1, double qq) {
    if (m > 0.0) {
      m = 0.0;
      s = qq > 0.0 ? xq / qq : 0.0;
    }
    if (s <= 0.0) return;
    const double error = s * s * qq + 2 * s * m * q1 + n * m * m - 2 * s * xq - 2 * m * sum_x;
    if (error < least) {
      least = error;
      best = {static_cast<float>(s), static_cast<float>(m)};
    }
  };
  for (int c = 0; c < kCandidates; ++c) {
    // From wider than the range to clipping a quarter of it.
    const float inverse = (top - 1.0f + 0.15f * static_cast<float>(c)) / (high - low) *
                          (levels <= 3 ? 1.0f + 0.02f * static_cast<float>(c) : 1.0f);
    Sum xq, q1, qq;
    for (int i = 0; i < n; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) {
        const float q = clamped(rounded((x[i + j] - low) * inverse), 0.0f, top);
        xq.lane[j] += x[i + j] * q;
        q1.lane[j] += q;
        qq.lane[j] += q * q;
      }
    }
    const double a = qq.total(), b = q1.total(), d = xq.total();
    const double determinant = a * n - b * b;
    if (determinant > 0.0) {
      consider((d * n - b * sum_x) / determinant, (a * sum_x - b * d) / determinant, d, b, a);
    }
  }
  return best;
}

void affine_codes(const float* x, int n, Affine by, int levels, uint8_t* out) {
  const float inverse = by.scale > 0.0f ? 1.0f / by.scale : 0.0f;
  for (int i = 0; i < n; ++i) {
    const float q = clamped((x[i] - by.min) * inverse, 0.0f, static_cast<float>(levels));
    out[i] = static_cast<uint8_t>(rounded(q));
  }
}

void scale_codes(const float* x, int n, float d, int low, int high, uint8_t* out) {
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  for (int i = 0; i < n; ++i) {
    const float q = clamped(x[i] * inverse, static_cast<float>(low), static_cast<float>(high));
    out[i] = static_cast<uint8_t>(static_cast<int>(rounded(q)) - low);
  }
}

void table_codes(const float* x, int n, float d, const NearestTable& table, uint8_t* out) {
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  for (int i = 0; i < n; ++i) out[i] = table.code[NearestTable::index(x[i] * inverse)];
}

}  // namespace moe
