#pragma once
// Gates of recurrent mixers: what is let through, and how fast a state forgets.

#include <cstdint>

#include "moe/base/tensor_view.h"
#include "moe/kernels/recurrence.h"
#include "moe/kernels/table.h"

namespace moe {

/// out = x · gating(gate); x.data null: gating(gate). Both [rows, n]; out [rows, n] is contiguous.
void gate(MatrixView<const float> x, MatrixView<const float> gate, Gating gating, float* out);
/// The same with an activation of experts.
void gate(MatrixView<const float> x, MatrixView<const float> gate, Activation activation,
          float* out);

struct GatedNorm {
  const float* weight = nullptr;  // [n]
  float eps = 1e-6f;
  Gating gating = Gating::kSilu;
  bool gate_first = false;  // norm(x · gating(g)) · weight, not norm(x) · weight · gating(g)
  int64_t groups = 1;       // parts of a row that are normed apart
};

/// RMS norm with a gate, row by row. Yang et al. 2024 (arXiv 2412.06464) gate after the norm,
/// Mamba-2 (Dao & Gu 2024, arXiv 2405.21060) before. out [rows, n]. Throws ValueError unless groups
/// divides the columns.
void gated_rms_norm(MatrixView<const float> x, MatrixView<const float> gate, const GatedNorm& norm,
                    float* out);

struct DecayParts {
  const float* bias = nullptr;  // [n], or null
  const float* rate = nullptr;  // [n]
  float low = 0.0f;             // of the step
  float high = __builtin_inff();
  float bound = 0.0f;
};

/// step = clamp(softplus(x + bias), low, high) and decay = e^(-rate · step); with bound < 0 step =
/// sigmoid(rate · (x + bias)) and decay = e^(bound · step). Both [rows, n]; either may be null,
/// rate too where decay is and bound is 0.
void decay_factors(MatrixView<const float> x, const DecayParts& parts, float* decay, float* step);

}  // namespace moe
