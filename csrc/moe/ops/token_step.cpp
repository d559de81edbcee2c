#include "moe/ops/token_step.h"

#include <tuple>
#include <vector>

#include "moe/base/buffer.h"
#include "moe/base/check.h"
#include "moe/kernels/table.h"
#include "moe/ops/gating.h"
#include "moe/ops/grouped_gemm.h"
#include "moe/ops/rope.h"

namespace moe {

namespace {

// A projection of one token, in place.
void norm_heads(const std::optional<RmsNormView>& norm, int64_t heads, int64_t width, float* x) {
  if (!norm) return;
  const bool per_head = norm->size == width || norm->size == 0;
  const MatrixView<const float> rows = per_head ? MatrixView<const float>{x, heads, width}
                                                : MatrixView<const float>{x, 1, heads * width};
  run_norm(*norm, rows, x);
}

}  // namespace

void check_step(const AttentionStep& step) {
  const int64_t hidden = step.q.cols(), heads = step.heads, kv_heads = step.kv_heads;
  MOE_CHECK(
      heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && step.q.rows() % heads == 0 &&
          step.v.rows() % kv_heads == 0 && step.k.rows() == step.q.rows() / heads * kv_heads &&
          step.o.cols() == step.v.rows() / kv_heads * heads,
      "[token_step] q, k, v have ", step.q.rows(), ", ", step.k.rows(), ", ", step.v.rows(),
      " rows, o ", step.o.cols(), " columns; they do not fit ", heads, " and ", kv_heads, " heads");
  MOE_CHECK(step.k.cols() == hidden && step.v.cols() == hidden && step.o.rows() == hidden,
            "[token_step] k, v have ", step.k.cols(), ", ", step.v.cols(), " columns, o ",
            step.o.rows(), " rows; ", hidden, " are required");
  check_norm(step.norm, hidden, "norm");
  for (const auto& [norm, rows, count, name] :
       {std::tuple{step.q_norm, step.q.rows(), heads, "q_norm"},
        std::tuple{step.k_norm, step.k.rows(), kv_heads, "k_norm"}}) {
    if (norm && norm->size != rows) check_norm(*norm, rows / count, name);
  }
}

void attention_step(const AttentionStep& step, const float* x, const TokenAngles& angles,
                    const TokenCache& keys, const TokenCache& values, int64_t position,
                    float* out) {
  const int64_t hidden = step.q.cols(), heads = step.heads, kv_heads = step.kv_heads;
  const int64_t dim = step.q.rows() / heads, value_dim = step.v.rows() / kv_heads;
  check_cache(keys, kv_heads, dim, position, "keys");
  check_cache(values, kv_heads, value_dim, position, "values");
  const int64_t floats = hidden + step.q.rows() + step.k.rows() + step.v.rows() + step.o.cols();
  float* normed = scratch_of<float>(Scratch::kToken, static_cast<size_t>(floats));
  float *q = normed + hidden, *k = q + step.q.rows(), *v = k + step.k.rows();
  float* mixed = v + step.v.rows();

  run_norm(step.norm, {x, 1, hidden}, normed);
  matmul_each({normed, 1, hidden},
              {{step.q.weight, step.q.bias, {q, 1, step.q.rows()}},
               {step.k.weight, step.k.bias, {k, 1, step.k.rows()}},
               {step.v.weight, step.v.bias, {v, 1, step.v.rows()}}},
              Compute::kAuto);
  norm_heads(step.q_norm, heads, dim, q);
  norm_heads(step.k_norm, kv_heads, dim, k);
  if (angles.cos != nullptr) {
    const RopeLayout layout{dim, 0, angles.half, step.interleaved};
    rope(q, step.q.rows(), 1, heads, layout, angles.cos, angles.sin, q, step.q.rows());
    rope(k, step.k.rows(), 1, kv_heads, layout, angles.cos, angles.sin, k, step.k.rows());
  }
  keep_token(k, keys, position);
  keep_token(v, values, position);

  AttentionInputs in;
  in.queries = token_row(q, heads, dim);
  in.keys = first_rows(keys, position + 1);
  in.values = first_rows(values, position + 1);
  in.scale = step.scale;
  in.softcap = step.softcap;
  in.first_position = position;
  in.window = step.window;
  in.chunk = step.chunk;
  in.sinks = step.sinks;
  attention("attention", in, mixed);
  matmul_each({mixed, 1, step.o.cols()}, {{step.o.weight, step.o.bias, {out, 1, hidden}}},
              Compute::kAuto);
}

void check_step(const ExpertsStep& step) {
  const int64_t hidden = step.router.cols();
  check_norm(step.norm, hidden, "norm");
  check_rule(step.rule, step.router.rows());
  MOE_CHECK(step.experts.up->experts() == step.router.rows() && step.experts.up->cols() == hidden,
            "[token_step] the router chooses among ", step.router.rows(), " experts of ", hidden,
            " columns; there are ", step.experts.up->experts(), " of ", step.experts.up->cols());
  const auto& gate = step.shared_gate;
  MOE_CHECK(!gate || (step.shared && gate->rows() == 1 && gate->cols() == hidden),
            "[token_step] shared_gate needs a shared expert and the shape [1, ", hidden, "]");
}

void experts_step(const ExpertsStep& step, const float* x, const float* added, int32_t* chosen,
                  float* weights, float* out) {
  const int64_t hidden = step.router.cols(), experts = step.router.rows();
  float* normed = scratch_of<float>(Scratch::kToken, static_cast<size_t>(2 * hidden + experts));
  float *part = normed + hidden, *logits = part + hidden;
  run_norm(step.norm, {x, 1, hidden}, normed, added, out);
  std::vector<MatrixProduct> scores = {
      {step.router.weight, step.router.bias, {logits, 1, experts}}};
  float factor = 1.0f;
  if (step.shared_gate) {
    scores.push_back({step.shared_gate->weight, step.shared_gate->bias, {&factor, 1, 1}});
  }
  matmul_each({normed, 1, hidden}, scores, Compute::kAuto);
  RouterInput input;
  input.logits = {logits, 1, experts};
  input.select_bias = step.select_bias;
  route(input, step.rule, chosen, weights);

  AssignmentView assignment{chosen, weights, 1, step.rule.top_k,
                            step.rule.score == Score::kInputSigmoid};
  SharedExpert shared;
  if (step.shared) shared.bank = *step.shared;
  if (step.shared_gate) {
    gate({}, {&factor, 1, 1}, Gating::kSigmoid, &factor);
    shared.scale = &factor;
  }
  moe_ffn({normed, 1, hidden}, assignment, step.experts, step.shared ? &shared : nullptr,
          step.compute, {part, 1, hidden});
  kernels().rowwise->add_scaled(out, part, 1.0f, hidden);
}

}  // namespace moe
