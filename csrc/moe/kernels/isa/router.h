#pragma once
// Routing, one token after the other.
//
// Shapes        logits [tokens, E] → ids, weights [tokens, K]
// Definition    s = score(logits);  chosen = the K largest of s + bias within the kept groups;
//               w = s[chosen], normalised and scaled as the rule says
// Regularities  E is 8 to 512, K 1 to 10. A row's floats fit L1, so it is passed several times.
// Cost          E exponentials per token, then about 30 operations per 16 experts.

#include "moe/kernels/isa/topk.h"
#include "moe/kernels/table.h"
#include "moe/simd/math.h"

namespace moe::MOE_ISA {

inline constexpr float kInf = __builtin_inff();

/// One token's arrays, each padded to whole vectors (-inf, kNoKey).
struct RouteRow {
  float* value;   // the logits that count: noise added, forbidden and NaN at -inf
  float* score;   // what weighs; for a softmax over all experts its numerators
  float* choice;  // what ranks
  int32_t* keys;
  int32_t* group_keys;
  TopScratch room;
  float total;  // the softmax's denominator
  bool bad;     // a NaN was met
};

MOE_INLINE RouteRow row_of(const RouteCall& call) {
  const int64_t size = padded_experts(call.experts) + 16;
  float* at = call.scratch;
  const auto floats = [&]() MOE_INLINE_LAMBDA { return at += size, at - size; };
  const auto ints = [&]() MOE_INLINE_LAMBDA { return reinterpret_cast<int32_t*>(floats()); };
  RouteRow row{};
  row.value = floats();
  row.score = floats();
  row.choice = floats();
  row.keys = ints();
  row.group_keys = ints();
  row.room = {ints(), ints(), ints()};
  return row;
}

/// Lanes that are experts of this token: not padding and not forbidden.
MOE_INLINE Mask16 present_lanes(const uint8_t* forbidden, int first, int experts) {
  const int n = experts - first < kLanes ? experts - first : kLanes;
  if (forbidden == nullptr) return first_mask(n);
  uint8_t bytes[kLanes];
  std::memset(bytes, 1, kLanes);
  std::memcpy(bytes, forbidden + first, static_cast<size_t>(n));
  return equal(select(nonzero_bytes(bytes), set1_i32(1), set1_i32(0)), set1_i32(0));
}

MOE_INLINE F32x16 load_up_to(const float* p, int n) {
  return n >= kLanes ? load(p) : load_first(p, n);
}

/// Reads a token's logits: value[], and score[] = function(value).
template <class F>
MOE_INLINE void read_row(const RouteCall& call, int64_t token, F function, RouteRow& row) {
  const float* logits = call.logits + token * call.logits_stride;
  const float* noise = call.noise == nullptr ? nullptr : call.noise + token * call.noise_stride;
  const uint8_t* forbidden =
      call.forbidden == nullptr ? nullptr : call.forbidden + token * call.forbidden_stride;
  const F32x16 lowest = set1(-kInf);
  uint32_t nan = 0;
  for (int e = 0; e < call.experts; e += kLanes) {
    const int n = call.experts - e;
    F32x16 v = load_up_to(logits + e, n);
    if (noise != nullptr) v = add(v, load_up_to(noise + e, n));
    if (forbidden != nullptr || n < kLanes) {
      v = select(present_lanes(forbidden, e, call.experts), v, lowest);
    }
    nan |= to_bitmask(is_nan(v));
    v = max(v, lowest);  // NaN becomes -inf
    store(row.value + e, v);
    store(row.score + e, function(v));
  }
  row.bad = nan != 0;
}

MOE_INLINE float max_of(const float* x, int n) {
  F32x16 top = set1(-kInf);
  for (int e = 0; e < n; e += kLanes) top = max(top, load(x + e));
  return reduce_max(top);
}

/// Softmax over all experts: score[] gets the numerators.
MOE_INLINE void exponentiate(const RouteCall& call, RouteRow& row) {
  const F32x16 top = set1(max_of(row.value, call.experts));
  F32x16 sum = zero_f32();
  for (int e = 0; e < call.experts; e += kLanes) {
    const F32x16 y = exp(sub(load(row.value + e), top));
    store(row.score + e, y);
    sum = add(sum, y);
  }
  row.total = reduce_add(sum);
}

/// 1 / (1 + e^-x); x is no NaN.
MOE_INLINE F32x16 sigmoid_of_number(F32x16 x) {
  const F32x16 one = set1(1.0f), low = set1(-88.0f);
  const F32x16 bounded = min(max(x, low), set1(86.0f));
  const F32x16 y = div(one, add(one, exp_bounded(sub(zero_f32(), bounded))));
  return select(less(x, low), zero_f32(), y);
}

/// sqrt(log(1 + e^x)); x is no NaN. log(1 + e^x) = max(x, 0) + log1p(u), u = e^-|x| in (0, 1], and
/// log1p(u) = 2·atanh(s), s = u / (2 + u) <= 1/3: eight terms reach float's precision.
MOE_INLINE F32x16 sqrt_softplus(F32x16 x) {
  const F32x16 u = exp(sub(zero_f32(), abs(x)));
  const F32x16 s = div(u, add(u, set1(2.0f)));
  const F32x16 z = mul(s, s);
  F32x16 p = set1(1.0f / 15.0f);
  p = fma(p, z, set1(1.0f / 13.0f));
  p = fma(p, z, set1(1.0f / 11.0f));
  p = fma(p, z, set1(1.0f / 9.0f));
  p = fma(p, z, set1(1.0f / 7.0f));
  p = fma(p, z, set1(1.0f / 5.0f));
  p = fma(p, z, set1(1.0f / 3.0f));
  p = fma(p, z, set1(1.0f));
  return sqrt(fma(add(s, s), p, max(x, zero_f32())));
}

/// First stage.
MOE_INLINE void score_row(const RouteCall& call, int64_t token, RouteRow& row) {
  switch (call.rule->score) {
    case Score::kSigmoid:
      return read_row(
          call, token, [](F32x16 x) MOE_INLINE_LAMBDA { return sigmoid_of_number(x); }, row);
    case Score::kSqrtSoftplus:
      return read_row(
          call, token, [](F32x16 x) MOE_INLINE_LAMBDA { return sqrt_softplus(x); }, row);
    case Score::kSoftmax:
    case Score::kSoftmaxTopk:
    case Score::kInputSigmoid:
    case Score::kSparseMixer:
      read_row(call, token, [](F32x16 x) MOE_INLINE_LAMBDA { return x; }, row);
      if (call.rule->score == Score::kSoftmax) exponentiate(call, row);
  }
}

/// choice[] and keys[]: scores plus bias. A softmax that nothing is added to ranks as its logits
/// do, so those rank: their order survives where exponentials round to the same value.
MOE_INLINE void rank_row(const RouteCall& call, int64_t token, RouteRow& row) {
  const RouterRule& rule = *call.rule;
  const bool compares_only =
      call.select_bias == nullptr &&
      (rule.groups == 1 || (rule.group_score == GroupScore::kMax && !rule.group_fill_zero));
  const bool softmax = rule.score == Score::kSoftmax && !compares_only;
  const float* source = rule.score == Score::kSoftmax && compares_only ? row.value : row.score;
  const uint8_t* forbidden =
      call.forbidden == nullptr ? nullptr : call.forbidden + token * call.forbidden_stride;
  const F32x16 lowest = set1(-kInf), total = set1(row.total);
  for (int e = 0; e < call.experts; e += kLanes) {
    const int n = call.experts - e;
    F32x16 c = load(source + e);
    if (softmax) c = div(c, total);
    if (call.select_bias != nullptr) c = add(c, load_up_to(call.select_bias + e, n));
    c = max(c, lowest);
    I32x16 key = sort_key(c);
    if (forbidden != nullptr || n < kLanes) {
      const Mask16 present = present_lanes(forbidden, e, call.experts);
      c = select(present, c, lowest);
      key = select(present, key, set1_i32(kNoKey));
    }
    store(row.choice + e, c);
    store_i32(row.keys + e, key);
  }
}

/// The best and second best of a range of choice[].
struct Top2 {
  float first, second;
};
MOE_INLINE Top2 merge_halves(F32x16 hi, F32x16 lo) {
  const auto step = [&](F32x16 other_hi, F32x16 other_lo) MOE_INLINE_LAMBDA {
    lo = max(min(hi, other_hi), max(lo, other_lo));
    hi = max(hi, other_hi);
  };
  step(swap_lanes<8>(hi), swap_lanes<8>(lo));
  step(swap_lanes<4>(hi), swap_lanes<4>(lo));
  step(swap_lanes<2>(hi), swap_lanes<2>(lo));
  step(swap_lanes<1>(hi), swap_lanes<1>(lo));
  float first[kLanes], second[kLanes];
  store(first, hi);
  store(second, lo);
  return {first[0], second[0]};
}
MOE_INLINE Top2 top2_of(const float* x, int n) {
  const F32x16 lowest = set1(-kInf);
  F32x16 hi = lowest, lo = lowest;
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F32x16 v = load(x + i);
    lo = max(lo, min(hi, v));
    hi = max(hi, v);
  }
  if (i < n) {
    const F32x16 v = select(first_mask(n - i), load_first(x + i, n - i), lowest);
    lo = max(lo, min(hi, v));
    hi = max(hi, v);
  }
  return merge_halves(hi, lo);
}

/// Takes the experts of all but the best groups out of the race. A group of which only one expert
/// is left counts with that one.
MOE_INLINE void limit_groups(const RouteCall& call, RouteRow& row) {
  const RouterRule& rule = *call.rule;
  const int size = call.experts / rule.groups;
  const int padded = static_cast<int>(padded_experts(rule.groups));
  store_i32(row.group_keys + padded - kLanes, set1_i32(kNoKey));
  for (int g = 0; g < rule.groups; ++g) {
    const Top2 top = top2_of(row.choice + g * size, size);
    const bool alone = rule.group_score == GroupScore::kMax || top.second == -kInf;
    row.group_keys[g] = sort_key(alone ? top.first : top.first + top.second);
  }
  const int kept = select_top(row.group_keys, padded, rule.top_groups, row.room);
  for (int i = 0; i < kept; ++i) row.group_keys[row.room.order[i]] = kNoKey;
  for (int g = 0; g < rule.groups; ++g) {
    if (row.group_keys[g] == kNoKey) continue;  // kept
    int32_t* keys = row.keys + g * size;
    for (int e = 0; e < size; ++e)
      keys[e] = !rule.group_fill_zero || keys[e] == kNoKey ? kNoKey : 0;
  }
}

/// The weights' sum; empty slots hold 0.
MOE_INLINE float sum_of(const float* weights, int k) {
  F32x16 sum = zero_f32();
  for (int s = 0; s < k; s += kLanes) sum = add(sum, load_up_to(weights + s, k - s));
  return reduce_add(sum);
}

/// weights[s] = function(the chosen logit), 0 for an empty slot.
template <class F>
MOE_INLINE void each_chosen_logit(const RouteRow& row, const int32_t* ids, int k, F function,
                                  float* weights) {
  for (int s = 0; s < k; ++s) weights[s] = ids[s] < 0 ? -kInf : row.value[ids[s]];
  for (int s = 0; s < k; s += kLanes) {
    const int n = k - s < kLanes ? k - s : kLanes;
    store_first(weights + s, function(load_up_to(weights + s, n)), n);
  }
}

/// Third stage: the weights of the chosen, empty slots 0.
MOE_INLINE void weigh_chosen(const RouterRule& rule, const RouteRow& row, const int32_t* ids,
                             float* weights) {
  const int k = rule.top_k;
  switch (rule.score) {
    case Score::kSoftmaxTopk: {
      float top = -kInf;
      for (int s = 0; s < k; ++s) {
        if (ids[s] >= 0 && row.value[ids[s]] > top) top = row.value[ids[s]];
      }
      const F32x16 all_top = set1(top);
      each_chosen_logit(
          row, ids, k, [=](F32x16 x) MOE_INLINE_LAMBDA { return exp(sub(x, all_top)); }, weights);
      const float sum = sum_of(weights, k);
      for (int s = 0; s < k; ++s) weights[s] /= sum;
      break;
    }
    case Score::kInputSigmoid:
      each_chosen_logit(
          row, ids, k, [](F32x16 x) MOE_INLINE_LAMBDA { return sigmoid_of_number(x); }, weights);
      break;
    case Score::kSoftmax:
      for (int s = 0; s < k; ++s) weights[s] = ids[s] < 0 ? 0.0f : row.score[ids[s]] / row.total;
      break;
    default:
      for (int s = 0; s < k; ++s) weights[s] = ids[s] < 0 ? 0.0f : row.score[ids[s]];
  }
  const float divisor = rule.normalize ? sum_of(weights, k) + rule.normalize_eps : 1.0f;
  for (int s = 0; s < k; ++s) {
    const float w = weights[s] / divisor * rule.scale;
    weights[s] = ids[s] < 0 ? 0.0f : row.bad ? __builtin_nanf("") : w;
  }
}

/// SparseMixer (Liu et al. 2024, as Phi-3.5-MoE infers): slot by slot, a softmax over the remaining
/// logits that lie within 2·jitter_eps of the largest, relative to max(|logit|, largest). With
/// `choose` the largest is taken, otherwise ids say which.
MOE_INLINE void sparse_mixer(const RouteCall& call, RouteRow& row, bool choose, int32_t* ids,
                             float* weights) {
  const RouterRule& rule = *call.rule;
  const float width = 2.0f * rule.jitter_eps;
  float* left = row.choice;  // the logits, -inf where already taken
  std::memcpy(left, row.value, static_cast<size_t>(padded_experts(call.experts)) * 4);
  for (int s = 0; s < rule.top_k; ++s) {
    if (choose) {
      const int n =
          select_top(row.keys, static_cast<int>(padded_experts(call.experts)), 1, row.room);
      ids[s] = n == 0 ? -1 : row.room.order[0];
    }
    weights[s] = 0.0f;
    if (ids[s] < 0) continue;
    const F32x16 top = set1(max_of(left, call.experts));
    F32x16 sum = zero_f32();
    for (int e = 0; e < call.experts; e += kLanes) {
      const F32x16 x = load(left + e);
      const F32x16 far = div(sub(top, x), max(abs(load(row.value + e)), top));
      const F32x16 y = select(less(set1(width), far), zero_f32(), exp(sub(x, top)));
      store(row.score + e, y);
      sum = add(sum, y);
    }
    weights[s] = row.score[ids[s]] / reduce_add(sum) * rule.scale;
    if (row.bad) weights[s] = __builtin_nanf("");
    left[ids[s]] = -kInf;
    row.keys[ids[s]] = kNoKey;
  }
}

static void route(const RouteCall& call) noexcept {
  const RouterRule& rule = *call.rule;
  const int padded = static_cast<int>(padded_experts(call.experts));
  RouteRow row = row_of(call);
  for (int64_t t = 0; t < call.tokens; ++t) {
    int32_t* ids = call.ids + t * rule.top_k;
    float* weights = call.weights + t * rule.top_k;
    score_row(call, t, row);
    rank_row(call, t, row);
    if (rule.score == Score::kSparseMixer) {
      sparse_mixer(call, row, true, ids, weights);
      continue;
    }
    if (rule.groups > 1 && rule.top_groups < rule.groups) limit_groups(call, row);
    const int found = select_top(row.keys, padded, rule.top_k, row.room);
    for (int s = 0; s < rule.top_k; ++s) ids[s] = s < found ? row.room.order[s] : -1;
    weigh_chosen(rule, row, ids, weights);
  }
}

static void weigh(const RouteCall& call) noexcept {
  RouteRow row = row_of(call);
  for (int64_t t = 0; t < call.tokens; ++t) {
    int32_t* ids = call.ids + t * call.rule->top_k;
    float* weights = call.weights + t * call.rule->top_k;
    score_row(call, t, row);
    if (call.rule->score == Score::kSparseMixer) {
      sparse_mixer(call, row, false, ids, weights);
    } else {
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
