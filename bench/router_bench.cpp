// Routing and the row movements around the experts: what the block costs besides its products.

#include <string>

#include "layer.h"
#include "measure.h"
#include "moe/ops/combine.h"
#include "moe/ops/plan.h"
#include "moe/ops/router.h"

namespace moe::bench {

namespace {

// DeepSeek-V3's: sigmoid scores, a selection bias, four of eight groups.
RouterRule deepseek_rule() {
  RouterRule rule;
  rule.score = Score::kSigmoid;
  rule.top_k = 8;
  rule.groups = 8;
  rule.top_groups = 4;
  rule.normalize = true;
  rule.scale = 2.5f;
  return rule;
}

RouterRule softmax_rule() {
  RouterRule rule;
  rule.top_k = 8;
  return rule;
}

void route_tokens(benchmark::State& state, const RouterRule& rule, int64_t tokens,
                  int64_t experts) {
  const std::vector<float> logits = random_values(tokens * experts, 5);
  const std::vector<float> bias = random_values(experts, 6);
  std::vector<int32_t> ids(static_cast<size_t>(tokens * rule.top_k));
  std::vector<float> weights(ids.size());
  RouterInput input;
  input.logits = MatrixView<const float>(logits.data(), tokens, experts);
  if (rule.score == Score::kSigmoid) input.select_bias = bias.data();
  for (auto _ : state) {
    route(input, rule, ids.data(), weights.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * tokens);
}

// Everything of a layer that is no product: route, plan, permute, combine at DeepSeek-V3's sizes.
void around_the_experts(benchmark::State& state, int64_t tokens) {
  constexpr int64_t kExperts = 256, kHidden = 7168;
  const RouterRule rule = deepseek_rule();
  const std::vector<float> logits = random_values(tokens * kExperts, 5);
  const std::vector<float> bias = random_values(kExperts, 6);
  const std::vector<float> x = random_values(tokens * kHidden, 7);
  const int64_t rows = tokens * rule.top_k;
  std::vector<float> sorted(static_cast<size_t>(rows * kHidden)), out(x.size());
  std::vector<int32_t> ids(static_cast<size_t>(rows));
  std::vector<float> weights(ids.size());
  RouterInput input;
  input.logits = MatrixView<const float>(logits.data(), tokens, kExperts);
  input.select_bias = bias.data();
  Plan plan;
  for (auto _ : state) {
    route(input, rule, ids.data(), weights.data());
    make_plan(ids.data(), tokens, rule.top_k, kExperts, &plan);
    permute(x.data(), tokens, kHidden * 4, plan, sorted.data());
    combine(MatrixView<const float>(sorted.data(), rows, kHidden), plan, weights.data(), tokens,
            rule.top_k, out.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * tokens);
}

}  // namespace

void register_routers(const Options& options) {
  const double seconds = options.quick ? 0.05 : 0.5;
  const auto add = [&](const std::string& name, auto run) {
    benchmark::RegisterBenchmark(name.c_str(), run)
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond)
        ->MinTime(seconds);
  };
  for (const int64_t tokens : {1, 4096}) {
    const std::string suffix = "/experts:256/tokens:" + std::to_string(tokens);
    add("route/sigmoid_bias_groups" + suffix,
        [=](benchmark::State& state) { route_tokens(state, deepseek_rule(), tokens, 256); });
    add("route/softmax" + suffix,
        [=](benchmark::State& state) { route_tokens(state, softmax_rule(), tokens, 256); });
  }
  add("route_plan_permute_combine/deepseek-v3/tokens:512",
      [](benchmark::State& state) { around_the_experts(state, 512); });
}

}  // namespace moe::bench
