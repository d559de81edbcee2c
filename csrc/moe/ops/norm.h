#pragma once
// Norms over the last dimension, in float32.

#include <cstdint>

#include "moe/base/tensor_view.h"

namespace moe {

/// What a norm does besides: pointers may be null. `weight` and `bias` are [n].
struct NormParts {
  const float* weight = nullptr;
  float offset = 0.0f;  // weights are stored minus this: 1 in zero-centred checkpoints (Qwen3-Next)
  const float* bias = nullptr;      // layer_norm only
  const float* residual = nullptr;  // [rows, n], added first
  float* sum = nullptr;             // [rows, n], gets x + residual
};

/// out = x / sqrt(mean(x²) + eps) · (weight + offset) (Zhang & Sennrich 2019), row by row; out may
/// be x. A row's bytes depend on that row alone. Parallel over rows.
void rms_norm(MatrixView<const float> x, const NormParts& parts, float eps, float* out);

/// out = (x - mean) / sqrt(variance + eps) · (weight + offset) + bias (Ba et al. 2016).
void layer_norm(MatrixView<const float> x, const NormParts& parts, float eps, float* out);

}  // namespace moe
