#include "moe/ops/hyper_connection.h"

#include <algorithm>
#include <cmath>

#include "moe/base/check.h"
#include "moe/base/parallel.h"

namespace moe {

namespace {

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

void softmax(float* x, int64_t n, float eps) {
  const float top = *std::max_element(x, x + n);
  float sum = 0.0f;
  for (int64_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - top);
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] / sum + eps;
}

/// Divides n numbers, `step` apart, by (their sum + eps).
void normalize(float* x, int64_t n, int64_t step, float eps) {
  float sum = 0.0f;
  for (int64_t i = 0; i < n; ++i) sum += x[i * step];
  for (int64_t i = 0; i < n; ++i) x[i * step] /= sum + eps;
}

}  // namespace

void hyper_connection(const HyperConnectionInputs& in, float* read, float* write, float* mix) {
  const int64_t n = in.streams;
  MOE_CHECK(n >= 1 && n <= kMaxStreams, "[hyper_connection] there are ", n, " streams; 1 to ",
            kMaxStreams, " are possible");
  MOE_CHECK(in.iterations >= 1, "[hyper_connection] iterations is ", in.iterations,
            "; at least 1 is required");
  const auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float *x = in.mixes + t * (2 + n) * n, *b = in.base;
      for (int64_t i = 0; i < n; ++i) {
        read[t * n + i] = sigmoid(x[i] * in.scales[0] + b[i]) + in.eps;
        write[t * n + i] = 2.0f * sigmoid(x[n + i] * in.scales[1] + b[n + i]);
      }
      float* m = mix + t * n * n;
      for (int64_t i = 0; i < n * n; ++i) m[i] = x[2 * n + i] * in.scales[2] + b[2 * n + i];
      for (int64_t i = 0; i < n; ++i) softmax(m + i * n, n, in.eps);
      for (int64_t round = 0; round < in.iterations; ++round) {
        for (int64_t i = 0; round > 0 && i < n; ++i) normalize(m + i * n, n, 1, in.eps);
        for (int64_t i = 0; i < n; ++i) normalize(m + i, n, n, in.eps);
      }
    }
  };
  parallel_for(in.tokens, 64, piece);
}

void mix_streams(const MixStreamsInputs& in, float* out) {
  const int64_t n = in.streams_in, m = in.streams_out, hidden = in.hidden;
  const auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float *x = in.streams + t * n * hidden, *w = in.weights + t * n * m;
      for (int64_t k = 0; k < m; ++k) {
        float* y = out + (t * m + k) * hidden;
        for (int64_t i = 0; i < hidden; ++i) y[i] = w[k] * x[i];
        for (int64_t j = 1; j < n; ++j) {
          const float weight = w[j * m + k];
          for (int64_t i = 0; i < hidden; ++i) y[i] += weight * x[j * hidden + i];
        }
        if (in.added == nullptr) continue;
        const float *added = in.added + t * hidden, factor = in.factors[t * m + k];
        for (int64_t i = 0; i < hidden; ++i) y[i] += factor * added[i];
      }
    }
  };
  const int64_t work = std::max<int64_t>(1, n * m * hidden);
  parallel_for(in.tokens, std::max<int64_t>(1, (1 << 16) / work), piece);
}

}  // namespace moe
