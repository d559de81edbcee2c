#pragma once
// Which experts a token goes to, and with what weights.

#include <cstdint>

#include "moe/base/tensor_view.h"
#include "moe/kernels/routing.h"

namespace moe {

/// What route() reads: logits [T, E], and what bends the choice. Noise has the logits' shape or no
/// data, `forbidden` is [E] (stride 0), [T, E] or null, `select_bias` is [E] or null.
struct RouterInput {
  MatrixView<const float> logits;
  MatrixView<const float> noise;
  const uint8_t* forbidden = nullptr;
  int64_t forbidden_stride = 0;
  const float* select_bias = nullptr;
  bool check_finite = false;
};

/// Throws ValueError unless the rule can be applied to that many experts.
void check_rule(const RouterRule& rule, int64_t experts);

/// Chooses experts [T, K] (best score first, ties to the lower id) and their weights [T, K], all in
/// float32. A forbidden expert is as if it did not exist; slots that find no expert get -1 and
/// weight 0. NaN ranks as -inf and turns the weights of its row into NaN. One token's bytes depend
/// on its own row alone. Throws ValueError for a rule that does not fit and, if check_finite is
/// set, for a logit that is not finite. Parallel over tokens.
void route(const RouterInput& input, const RouterRule& rule, int32_t* experts, float* weights);

/// Weights [T, K] that the rule gives to experts [T, K] chosen elsewhere (-1: empty, weight 0):
/// hash layers (DeepSeek-V4), replayed or edited routing. Throws ValueError for an id that is no
/// expert.
void weigh(const RouterInput& input, const RouterRule& rule, const int32_t* experts,
           float* weights);

}  // namespace moe
