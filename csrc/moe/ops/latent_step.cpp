#include "moe/ops/latent_step.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "moe/base/buffer.h"
#include "moe/base/check.h"
#include "moe/ops/grouped_gemm.h"
#include "moe/ops/rope.h"

namespace moe {

void check_step(const LatentStep& step) {
  const int64_t hidden = step.hidden(), heads = step.heads(), latent = step.latent();
  MOE_CHECK(step.value_up->experts() == heads && step.value_up->cols() == latent,
            "[latent_step] value_up is ", step.value_up->experts(), " of [", step.value(), ", ",
            step.value_up->cols(), "]; ", heads, " of [V, ", latent, "] are required");
  MOE_CHECK(step.rope() >= 1 && step.q.rows() == heads * (step.nope() + step.rope()),
            "[latent_step] q gives ", step.q.rows(), " and kv_a ", step.kv_a.rows(), "; ", heads,
            " heads of ", step.nope(), " + rope and a latent of ", latent, " + rope are required");
  MOE_CHECK((step.q_a ? step.q_a->cols() : step.q.cols()) == hidden &&
                (!step.q_a || step.q_a->rows() == step.q.cols()) && step.o.rows() == hidden &&
                step.o.cols() == heads * step.value(),
            "[latent_step] q has ", step.q.cols(), " columns, o is [", step.o.rows(), ", ",
            step.o.cols(), "]; they do not fit a row of ", hidden);
  check_norm(step.norm, hidden, "norm");
  check_norm(step.kv_norm, latent, "kv_norm");
  if (step.q_norm) check_norm(*step.q_norm, step.q.cols(), "q_norm");
}

void latent_step(const LatentStep& step, const float* x, const TokenAngles& angles,
                 const TokenCache& entries, int64_t position, float* out) {
  const int64_t hidden = step.hidden(), heads = step.heads(), latent = step.latent();
  const int64_t nope = step.nope(), rope_dim = step.rope(), width = latent + rope_dim;
  check_cache(entries, 1, width, position, "entries");
  const LinearView& first = step.q_a ? *step.q_a : step.q;
  const int64_t compressed = step.q_a ? first.rows() : 0;
  const int64_t floats =
      hidden + compressed + step.q.rows() + width + heads * (rope_dim + 2 * latent + step.value());
  float* normed = scratch_of<float>(Scratch::kToken, static_cast<size_t>(floats));
  float *low = normed + hidden, *q = low + compressed, *entry = q + step.q.rows();
  float *q_rope = entry + width, *q_latent = q_rope + heads * rope_dim;
  float *mixed = q_latent + heads * latent, *values = mixed + heads * latent;

  run_norm(step.norm, {x, 1, hidden}, normed);
  matmul_each({normed, 1, hidden},
              {{first.weight, first.bias, {step.q_a ? low : q, 1, first.rows()}},
               {step.kv_a.weight, step.kv_a.bias, {entry, 1, width}}},
              Compute::kAuto);
  if (step.q_a) {
    if (step.q_norm) run_norm(*step.q_norm, {low, 1, compressed}, low);
    matmul_each({low, 1, compressed}, {{step.q.weight, step.q.bias, {q, 1, step.q.rows()}}},
                Compute::kAuto);
  }
  run_norm(step.kv_norm, {entry, 1, latent}, entry);
  for (int64_t h = 0; h < heads; ++h) {
    std::copy_n(q + h * (nope + rope_dim) + nope, rope_dim, q_rope + h * rope_dim);
  }
  if (angles.cos != nullptr) {
    const RopeLayout layout{rope_dim, 0, angles.half, step.interleaved};
    float* key = entry + latent;
    rope(q_rope, heads * rope_dim, 1, heads, layout, angles.cos, angles.sin, q_rope,
         heads * rope_dim);
    rope(key, rope_dim, 1, 1, layout, angles.cos, angles.sin, key, rope_dim);
  }
  keep_token(entry, entries, position);

  std::vector<int64_t> one_each(static_cast<size_t>(heads) + 1);
  std::iota(one_each.begin(), one_each.end(), 0);
  grouped_matmul({q, heads, nope, nope + rope_dim}, *step.key_up, one_each.data(), Compute::kAuto,
                 {q_latent, heads, latent});
  AttentionInputs in;
  in.queries = token_row(q_latent, heads, latent);
  in.query_tails = token_row(q_rope, heads, rope_dim);
  in.keys = first_rows(entries, position + 1);
  in.values = in.keys;
  in.values.dim = latent;
  in.scale = step.scale;
  in.first_position = position;
  attention("mla_attention", in, mixed);
  grouped_matmul({mixed, heads, latent}, *step.value_up, one_each.data(), Compute::kAuto,
                 {values, heads, step.value()});
  matmul_each({values, 1, step.o.cols()}, {{step.o.weight, step.o.bias, {out, 1, hidden}}},
              Compute::kAuto);
}

}  // namespace moe
