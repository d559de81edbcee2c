#include "moe/ops/router.h"

#include <cmath>

#include "moe/base/buffer.h"
#include "moe/base/check.h"
#include "moe/base/parallel.h"
#include "moe/kernels/table.h"

namespace moe {

namespace {

/// Tokens per task, so that one takes some 15 µs: less is not worth waking a thread for.
int64_t grain_of(int64_t experts) { return (1 << 14) / (experts + 64) + 1; }

RouteCall call_of(const RouterInput& input, const RouterRule& rule) {
  RouteCall call{};
  call.rule = &rule;
  call.experts = static_cast<int>(input.logits.cols);
  call.logits = input.logits.data;
  call.logits_stride = input.logits.stride;
  call.noise = input.noise.data;
  call.noise_stride = input.noise.stride;
  call.forbidden = input.forbidden;
  call.forbidden_stride = input.forbidden_stride;
  call.select_bias = input.select_bias;
  return call;
}

void check_input(const RouterInput& input, const RouterRule& rule) {
  const MatrixView<const float>& logits = input.logits;
  check_rule(rule, logits.cols);
  MOE_CHECK(input.noise.data == nullptr ||
                (input.noise.rows == logits.rows && input.noise.cols == logits.cols),
            "[route] noise has shape [", input.noise.rows, ", ", input.noise.cols,
            "]; logits have [", logits.rows, ", ", logits.cols, "]");
  if (input.select_bias != nullptr) {
    for (int64_t e = 0; e < logits.cols; ++e) {
      MOE_CHECK(!std::isnan(input.select_bias[e]), "[route] select_bias[", e,
                "] is nan; numbers are required");
    }
  }
  if (!input.check_finite) return;
  for (int64_t t = 0; t < logits.rows; ++t) {
    for (int64_t e = 0; e < logits.cols; ++e) {
      MOE_CHECK(std::isfinite(logits.row(t)[e]), "[route] the logit of token ", t, ", expert ", e,
                " is ", logits.row(t)[e], "; check_finite requires finite ones");
    }
  }
}

/// Runs a kernel over the tokens.
void over_tokens(const RouteCall& whole, int64_t tokens,
                 void (*kernel)(const RouteCall&) noexcept) {
  const int k = whole.rule->top_k;
  const auto piece = [&](int64_t begin, int64_t end) {
    RouteCall call = whole;
    call.tokens = end - begin;
    call.logits += begin * call.logits_stride;
    if (call.noise != nullptr) call.noise += begin * call.noise_stride;
    if (call.forbidden != nullptr) call.forbidden += begin * call.forbidden_stride;
    call.ids += begin * k;
    call.weights += begin * k;
    call.scratch = scratch_of<float>(Scratch::kRouter,
                                     static_cast<size_t>(route_scratch_floats(call.experts)));
    kernel(call);
  };
  parallel_for(tokens, grain_of(whole.experts), piece);
}

}  // namespace

void check_rule(const RouterRule& rule, int64_t experts) {
  MOE_CHECK(experts >= 1 && experts <= (1 << 20), "[route] there are ", experts,
            " experts; 1 to 2^20 are required");
  MOE_CHECK(rule.top_k >= 1 && rule.top_k <= experts, "[route] k is ", rule.top_k, "; 1 to ",
            experts, " (the number of experts) is required");
  MOE_CHECK(rule.groups >= 1 && experts % rule.groups == 0, "[route] groups is ", rule.groups,
            "; a divisor of ", experts, " (the number of experts) is required");
  MOE_CHECK(rule.top_groups >= 1 && rule.top_groups <= rule.groups, "[route] top_groups is ",
            rule.top_groups, "; 1 to ", rule.groups, " (groups) is required");
  const int64_t reachable = experts / rule.groups * rule.top_groups;
  MOE_CHECK(rule.group_fill_zero || rule.top_k <= reachable, "[route] k is ", rule.top_k,
            "; top_groups leaves ", reachable, " experts to choose from");
  MOE_CHECK(rule.score != Score::kSparseMixer || (rule.groups == 1 && rule.jitter_eps >= 0.0f),
            "[route] sparsemixer has groups ", rule.groups, " and jitter_eps ", rule.jitter_eps,
            "; no groups and jitter_eps >= 0 are required");
}

void route(const RouterInput& input, const RouterRule& rule, int32_t* experts, float* weights) {
  check_input(input, rule);
  RouteCall call = call_of(input, rule);
  call.ids = experts;
  call.weights = weights;
  over_tokens(call, input.logits.rows, kernels().router->route);
}

void weigh(const RouterInput& input, const RouterRule& rule, const int32_t* experts,
           float* weights) {
  check_input(input, rule);
  const int64_t count = input.logits.rows * rule.top_k;
  for (int64_t i = 0; i < count; ++i) {
    MOE_CHECK(experts[i] >= -1 && experts[i] < input.logits.cols, "[weigh] token ", i / rule.top_k,
              ", slot ", i % rule.top_k, " has expert ", experts[i], "; -1 (empty) or 0 to ",
              input.logits.cols - 1, " is required");
  }
  RouteCall call = call_of(input, rule);
  call.ids = const_cast<int32_t*>(experts);  // weigh() only reads them
  call.weights = weights;
  over_tokens(call, input.logits.rows, kernels().router->weigh);
}

}  // namespace moe
