#pragma once
// The short convolution along time that recurrent mixers put before their states.

#include <cstdint>

#include "moe/base/tensor_view.h"
#include "moe/kernels/recurrence.h"

namespace moe {

struct ConvParts {
  const float* weight = nullptr;  // [taps, channels], the newest token's tap last
  int64_t taps = 1;
  const float* bias = nullptr;   // [channels], or null
  const float* state = nullptr;  // [taps - 1, channels], the tokens before; null: zeros
  Gating activation = Gating::kIdentity;
};

/// out[t] = act(bias + Σ_w weight[w] · x[t - taps + 1 + w]), channel by channel; `new_state`
/// [taps - 1, channels] gets the last inputs and must not overlap the old state. out [T, channels].
/// Gu & Dao 2023 (arXiv 2312.00752), section 3.4. Parallel over tokens. Throws ValueError for
/// taps out of 1 … 64.
void causal_conv(MatrixView<const float> x, const ConvParts& parts, float* out, float* new_state);

}  // namespace moe
