#pragma once
// A router's rule, and what the routing kernels take. Three stages: score the experts, select K of
// them, weigh the selected; so the routers of the field are rows of arguments, not classes.

#include <cstdint>

namespace moe {

/// How logits become scores, and which softmax weighs.
enum class Score : uint8_t {
  kSoftmax,       // over all experts, then top-k (Switch, Mixtral, Qwen, OLMoE, DeepSeek-V2)
  kSoftmaxTopk,   // top-k of the logits, then softmax over the chosen (gpt-oss, Granite)
  kSigmoid,       // DeepSeek-V3, GLM-4.5, MiniMax-M2
  kSqrtSoftplus,  // sqrt(log(1 + e^x)), DeepSeek-V4
  kInputSigmoid,  // top-k of the logits, sigmoid of the chosen scales the expert's input (Llama 4)
  kSparseMixer,   // Phi-3.5-MoE: a softmax per slot, over what is within 2·jitter_eps of the best
};

/// What ranks a group of experts.
enum class GroupScore : uint8_t {
  kTop2,  // the sum of its two best (DeepSeek-V3)
  kMax,   // its best (DeepSeek-V2)
};

struct RouterRule {
  Score score = Score::kSoftmax;
  int top_k = 1;
  int groups = 1;      // divides the number of experts
  int top_groups = 1;  // how many groups keep their experts
  GroupScore group_score = GroupScore::kTop2;
  bool group_fill_zero =
      false;               // experts outside compete with score 0 (V2) instead of not at all (V3)
  bool normalize = false;  // weights / max(their sum + normalize_eps, normalize_min)
  float normalize_eps = 1e-20f;
  float normalize_min = 0.0f;
  float scale = 1.0f;       // multiplies the weights, after normalising
  float jitter_eps = 0.0f;  // SparseMixer's
};

/// A run of tokens. Strides are in elements, from one token to the next; 0 is one row for all.
struct RouteCall {
  const RouterRule* rule;
  int experts;
  int64_t tokens;
  const float* logits;
  int64_t logits_stride;
  const float* noise;  // added to the logits; may be null
  int64_t noise_stride;
  const uint8_t* forbidden;  // not zero: the expert does not exist for this token; may be null
  int64_t forbidden_stride;
  const float* select_bias;  // [experts], selects and never weighs; may be null
  float* scratch;            // route_scratch_floats(experts)
  int32_t* ids;              // [tokens, top_k]; read instead of written by weigh()
  float* weights;            // [tokens, top_k]
};

inline constexpr int64_t padded_experts(int64_t experts) { return (experts + 15) / 16 * 16; }
/// Tokens that a kernel carries through its stages side by side.
inline constexpr int kRowsAtOnce = 4;
inline constexpr int64_t route_scratch_floats(int64_t experts) {
  return kRowsAtOnce * 9 * (padded_experts(experts) + 16);
}

struct RouterKernels {
  /// Writes ids (best first, -1 where nothing is left to choose) and weights (0 there).
  void (*route)(const RouteCall&) noexcept;
  /// Weighs given ids (-1: empty) by the rule's first and third stage.
  void (*weigh)(const RouteCall&) noexcept;
  /// out[i] = Σ_s weights[s] · rows[s][i], in order of s; 0 where count is 0.
  void (*combine)(const float* const* rows, const float* weights, int count, float* out,
                  int64_t n) noexcept;
};

}  // namespace moe
