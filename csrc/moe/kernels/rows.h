#pragma once
// Kernels over whole rows: norms, rotary embedding, embedding rows, the scans of a sampler.

#include <cstdint>

#include "moe/base/dtype.h"

namespace moe {

/// One row of a norm. `residual`, `sum`, `weight` and `bias` may be null; `out` may be `x`.
struct NormRow {
  const float* x;
  const float* residual;  // added first
  float* sum;             // gets x + residual
  const float* weight;
  float offset;       // added to the weight: 1 where a checkpoint holds w - 1
  const float* bias;  // layer_norm only
  float eps;
  int64_t n;
  float* out;
};

struct NormKernels {
  void (*rms_norm)(const NormRow&) noexcept;
  void (*layer_norm)(const NormRow&) noexcept;
};

struct RopeKernels {
  /// cos and sin of position · frequency (a float product, as the models were trained), × factor.
  void (*angles)(float position, const float* frequencies, int64_t half, float factor, float* cos,
                 float* sin) noexcept;
  /// Pairs (i, half + i): out_i = x_i·c_i - x_{h+i}·s_i, out_{h+i} = x_{h+i}·c_i + x_i·s_i.
  void (*rotate_halves)(const float* x, const float* cos, const float* sin, int64_t half,
                        float* out) noexcept;
  /// Pairs (2i, 2i + 1), which stay where they are; cos and sin hold each value twice, the sine's
  /// first one negated.
  void (*rotate_pairs)(const float* x, const float* cos, const float* sin, int64_t n,
                       float* out) noexcept;
};

/// What one look at a row of logits tells.
struct LogitScan {
  float top;      // the largest
  bool has_nan;   // then top means nothing
  int64_t first;  // the first index that holds top
};

struct SampleKernels {
  /// Any plain dtype to float; exact.
  void (*widen)(const void* x, DType dtype, int64_t n, float* out) noexcept;
  LogitScan (*scan)(const float* logits, int64_t n) noexcept;
  /// out[i] = e^((x[i] - top) / temperature)
  void (*exponentials)(const float* x, float top, float temperature, int64_t n,
                       float* out) noexcept;
};

}  // namespace moe
