#pragma once
// A decoded token's way through half a layer, in one call.
//
// Regularities  One token of one sequence. Around its products stand a dozen small operations whose
//               code and data the weights drive out of the caches in every layer: called one by one
//               from Python they cost a tenth of the token.
// Definition    The operations of norm.h, grouped_gemm.h, rope.h, kv_cache.h, attention.h, router.h
//               and moe_block.h in the token's order: the same bytes as calling them.

#include <cstdint>
#include <optional>

#include "moe/ops/moe_block.h"
#include "moe/ops/router.h"
#include "moe/ops/token_parts.h"

namespace moe {

/// Grouped-query attention behind a norm. `q_norm` and `k_norm` of a head's size (or of none) norm
/// each head, else the whole projection.
struct AttentionStep {
  RmsNormView norm;
  LinearView q, k, v, o;
  std::optional<RmsNormView> q_norm, k_norm;
  int64_t heads = 0, kv_heads = 0;
  bool interleaved = false;  // pairs of rotation
  float scale = 1.0f, softcap = 0.0f;
  int64_t window = 0, chunk = 0;
  const float* sinks = nullptr;  // [heads], or null
};

/// Throws ValueError unless the sizes of a step's parts fit together.
void check_step(const AttentionStep& step);

/// out [H] = o · attention(norm(x)), x [H], of the token at position `position`, whose key and
/// value are kept there. Throws ValueError where the caches do not fit or have no room.
void attention_step(const AttentionStep& step, const float* x, const TokenAngles& angles,
                    const TokenCache& keys, const TokenCache& values, int64_t position, float* out);

/// A router and its experts behind a norm; the shared one's part is times the sigmoid of
/// `shared_gate` [1, H] where there is such a gate.
struct ExpertsStep {
  RmsNormView norm;
  LinearView router;
  RouterRule rule;
  const float* select_bias = nullptr;  // [E], or null
  ExpertBank experts;
  std::optional<ExpertBank> shared;
  std::optional<LinearView> shared_gate;
  Compute compute = Compute::kAuto;
};

void check_step(const ExpertsStep& step);

/// out [H] = x + added + experts(norm(x + added)); `chosen` and `weights` [K] get what the router
/// chose.
void experts_step(const ExpertsStep& step, const float* x, const float* added, int32_t* chosen,
                  float* weights, float* out);

}  // namespace moe
