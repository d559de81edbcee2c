#pragma once
// Routing, one token after the other.
//
// Shapes        logits [tokens, E] → ids, weights [tokens, K]
// Definition    s = score(logits);  chosen = the K largest of s + bias within the kept groups;
//               w = s[chosen], normalised and scaled as the rule says
// Regularities  E is 8 to 512, K 1 to 10. A row's floats fit L1, so it is passed several times.
// Cost          E exponentials per token, then about 30 operations per 16 experts.

#include "moe/kernels/isa/router_groups.h"

namespace moe::MOE_ISA {

/// Third stage, first half: what the weights are made of; an empty slot gets what weighs 0.
MOE_INLINE void gather_chosen(const RouterRule& rule, const RouteRow& row, const int32_t* ids,
                              float* weights) {
  const bool logits = rule.score == Score::kSoftmaxTopk || rule.score == Score::kInputSigmoid;
  const float* from = logits ? row.value : row.score;
  const float empty = logits ? -kInf : 0.0f;
  for (int s = 0; s < rule.top_k; ++s) weights[s] = ids[s] < 0 ? empty : from[ids[s]];
}

/// weights[s] = function(weights[s]); returns the sum of the results.
template <class F>
MOE_INLINE float map_weights(float* weights, int k, F function) {
  F32x16 sum = zero_f32();
  for (int s = 0; s < k; s += kLanes) {
    const int n = k - s < kLanes ? k - s : kLanes;
    const F32x16 y = function(load_first(weights + s, n));
    store_first(weights + s, y, n);
    sum = add(sum, select(first_mask(n), y, zero_f32()));
  }
  return reduce_add(sum);
}

/// Third stage, second half.
MOE_INLINE void weigh_chosen(const RouterRule& rule, const RouteRow& row, const int32_t* ids,
                             float* weights) {
  const int k = rule.top_k;
  F32x16 divisor = set1(1.0f);
  if (rule.score == Score::kSoftmax) {
    divisor = set1(row.total);
  } else if (rule.score == Score::kSoftmaxTopk) {
    F32x16 top = set1(-kInf);
    for (int s = 0; s < k; s += kLanes) {
      const F32x16 w = load_up_to(weights + s, k - s);
      top = max(top, select(first_mask(k - s < kLanes ? k - s : kLanes), w, set1(-kInf)));
    }
    top = set1(reduce_max(top));
    divisor =
        set1(map_weights(weights, k, [=](F32x16 w) MOE_INLINE_LAMBDA { return exp(sub(w, top)); }));
  } else if (rule.score == Score::kInputSigmoid) {
    map_weights(weights, k, [](F32x16 w) MOE_INLINE_LAMBDA { return sigmoid_or_zero(w); });
  }
  const F32x16 scale = set1(rule.scale);
  if (rule.normalize) {
    const float sum =
        map_weights(weights, k, [=](F32x16 w) MOE_INLINE_LAMBDA { return div(w, divisor); }) +
        rule.normalize_eps;
    const F32x16 all = set1(sum < rule.normalize_min ? rule.normalize_min : sum);
    map_weights(weights, k, [=](F32x16 w) MOE_INLINE_LAMBDA { return mul(div(w, all), scale); });
  } else {
    map_weights(weights, k,
                [=](F32x16 w) MOE_INLINE_LAMBDA { return mul(div(w, divisor), scale); });
  }
  if (!row.bad && row.found >= k) return;
  for (int s = 0; s < k; ++s) {
    if (ids[s] < 0) weights[s] = 0.0f;  // 0 / 0 where the row has no expert at all
    if (ids[s] >= 0 && row.bad) weights[s] = __builtin_nanf("");
  }
}

/// SparseMixer (Liu et al. 2024, as Phi-3.5-MoE infers): slot by slot, a softmax over the remaining
/// logits that lie within 2·jitter_eps of the largest, relative to max(|logit|, largest). With
/// `choose` the largest is taken, otherwise ids say which.
MOE_INLINE void sparse_mixer(const RouteCall& call, RouteRow& row, bool choose, int32_t* ids,
                             float* weights) {
  const RouterRule& rule = *call.rule;
  const float width = 2.0f * rule.jitter_eps;
  float* left = row.spare;  // the logits, -inf where already taken
  std::memcpy(left, row.value, static_cast<size_t>(padded_experts(call.experts)) * 4);
  for (int s = 0; s < rule.top_k; ++s) {
    if (choose) {
      const int n = select_top(row.keys, row.vectors, 1, row.room);
      ids[s] = n == 0 ? -1 : row.room.order[0];
    }
    weights[s] = 0.0f;
    if (ids[s] < 0) continue;
    const F32x16 top = set1(max_of(left, call.experts));
    PlacelessSum sum = empty_sum();
    for (int e = 0; e < call.experts; e += kLanes) {
      const F32x16 x = load(left + e);
      const F32x16 far = div(sub(top, x), max(abs(load(row.value + e)), top));
      const F32x16 y = select(less(set1(width), far), zero_f32(), exp(sub(x, top)));
      store(row.score + e, y);
      add_to(sum, y);
    }
    weights[s] = row.score[ids[s]] / total_of(sum) * rule.scale;
    if (row.bad) weights[s] = __builtin_nanf("");
    left[ids[s]] = -kInf;
    row.keys[ids[s]] = kNoKey;
  }
}

/// Up to kRowsAtOnce tokens, stage by stage: a vector load of what scalar stores have just written
/// waits until they have reached the cache, so the other tokens' work is put between.
MOE_INLINE void route_side_by_side(const RouteCall& call, int64_t token, int count,
                                   RouteRow (&rows)[kRowsAtOnce]) {
  const RouterRule& rule = *call.rule;
  int32_t* ids = call.ids + token * rule.top_k;
  float* weights = call.weights + token * rule.top_k;
  for (int i = 0; i < count; ++i) score_row(call, token + i, rows[i]);
  if (rule.top_groups < rule.groups) {
    for (int i = 0; i < count; ++i) limit_groups(call, rows[i]);
  }
  int32_t bound[kRowsAtOnce];
  for (int i = 0; i < count; ++i) {
    bound[i] = bound_of_top(rows[i].keys, rows[i].vectors, rule.top_k);
  }
  for (int i = 0; i < count; ++i) {
    rows[i].found = filter_top(rows[i].keys, rows[i].vectors, bound[i], rows[i].room);
  }
  for (int i = 0; i < count; ++i) {
    rank_by_counting(rows[i].room, rows[i].found);
    for (int s = 0; s < rule.top_k; ++s) {
      ids[i * rule.top_k + s] = s < rows[i].found ? rows[i].room.order[s] : -1;
    }
  }
  for (int i = 0; i < count; ++i) {
    gather_chosen(rule, rows[i], ids + i * rule.top_k, weights + i * rule.top_k);
  }
  for (int i = 0; i < count; ++i) {
    weigh_chosen(rule, rows[i], ids + i * rule.top_k, weights + i * rule.top_k);
  }
}

static void route(const RouteCall& call) noexcept {
  RouteRow rows[kRowsAtOnce];
  for (int i = 0; i < kRowsAtOnce; ++i) rows[i] = row_of(call, i);
  if (call.rule->score == Score::kSparseMixer) {
    for (int64_t t = 0; t < call.tokens; ++t) {
      score_row(call, t, rows[0]);
      sparse_mixer(call, rows[0], true, call.ids + t * call.rule->top_k,
                   call.weights + t * call.rule->top_k);
    }
    return;
  }
  for (int64_t t = 0; t < call.tokens; t += kRowsAtOnce) {
    const int64_t left = call.tokens - t;
    route_side_by_side(call, t, left < kRowsAtOnce ? static_cast<int>(left) : kRowsAtOnce, rows);
  }
}

static void weigh(const RouteCall& call) noexcept {
  RouteRow row = row_of(call, 0);
  for (int64_t t = 0; t < call.tokens; ++t) {
    int32_t* ids = call.ids + t * call.rule->top_k;
    float* weights = call.weights + t * call.rule->top_k;
    score_row(call, t, row);
    if (call.rule->score == Score::kSparseMixer) {
      sparse_mixer(call, row, false, ids, weights);
    } else {
      row.found = 0;  // any slot may be empty
      gather_chosen(*call.rule, row, ids, weights);
      weigh_chosen(*call.rule, row, ids, weights);
    }
  }
}

static void combine(const float* const* rows, const float* weights, int count, float* out,
                    int64_t n) noexcept {
  constexpr int kWide = 4;  // vectors at once: enough chains to hide the latency of a sum
  int64_t i = 0;
  for (; i + kWide * kLanes <= n; i += kWide * kLanes) {
    F32x16 sum[kWide];
    MOE_UNROLL
    for (int j = 0; j < kWide; ++j) sum[j] = zero_f32();
    for (int s = 0; s < count; ++s) {
      const F32x16 w = set1(weights[s]);
      MOE_UNROLL
      for (int j = 0; j < kWide; ++j) sum[j] = fma(w, load(rows[s] + i + j * kLanes), sum[j]);
    }
    MOE_UNROLL
    for (int j = 0; j < kWide; ++j) store(out + i + j * kLanes, sum[j]);
  }
  for (; i < n; i += kLanes) {
    const int rest = static_cast<int>(n - i < kLanes ? n - i : kLanes);
    F32x16 sum = zero_f32();
    for (int s = 0; s < count; ++s) sum = fma(set1(weights[s]), load_first(rows[s] + i, rest), sum);
    store_first(out + i, sum, rest);
  }
}

static constexpr RouterKernels kRouterKernels = {&route, &weigh, &combine};

}  // namespace moe::MOE_ISA
