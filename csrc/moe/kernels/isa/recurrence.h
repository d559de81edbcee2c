#pragma once
// Mixers that carry a state from token to token.
//
// Shapes        a head's state S [keys, values], values along the lanes
// Definition    S = decay · S;  v' = scale · (v - Sᵀk, or v alone);  S += k v'ᵀ;  y = Sᵀq + skip ·
// v Regularities  tokens follow one another and a value's column never meets another one, so a
// token's
//               bytes do not depend on how many are given at once
// Cost          two passes (one without the delta rule) over 32 columns of S, which stay in L1

#include "moe/kernels/table.h"
#include "moe/simd/math.h"

namespace moe::MOE_ISA {

/// Calls body(i, lanes) for 0, 16, 32, … below n.
template <class Body>
MOE_INLINE void over_lanes(int64_t n, Body body) {
  for (int64_t i = 0; i < n; i += kLanes) {
    body(i, static_cast<int>(n - i < kLanes ? n - i : kLanes));
  }
}

MOE_INLINE F32x16 gated(Gating gating, F32x16 x) {
  if (gating == Gating::kSilu) return silu(x);
  if (gating == Gating::kSigmoid) return sigmoid(x);
  return x;
}

static void convolve(const ConvRow& row) noexcept {
  over_lanes(row.n, [&](int64_t i, int lanes) MOE_INLINE_LAMBDA {
    F32x16 y = row.bias != nullptr ? load_first(row.bias + i, lanes) : zero_f32();
    for (int w = 0; w < row.taps; ++w) {
      y = fma(load_first(row.weight + w * row.n + i, lanes), load_first(row.inputs[w] + i, lanes),
              y);
    }
    store_first(row.out + i, gated(row.activation, y), lanes);
  });
}

static void gate_row(const float* x, const float* gate, Gating gating, int64_t n,
                     float* out) noexcept {
  over_lanes(n, [&](int64_t i, int lanes) MOE_INLINE_LAMBDA {
    F32x16 y = gated(gating, load_first(gate + i, lanes));
    if (x != nullptr) y = mul(load_first(x + i, lanes), y);
    store_first(out + i, y, lanes);
  });
}

static void decay_row(const DecayRow& row) noexcept {
  const F32x16 low = set1(row.low), high = set1(row.high), bound = set1(row.bound);
  over_lanes(row.n, [&](int64_t i, int lanes) MOE_INLINE_LAMBDA {
    F32x16 x = load_first(row.x + i, lanes);
    if (row.bias != nullptr) x = add(x, load_first(row.bias + i, lanes));
    const F32x16 rate = row.rate != nullptr ? load_first(row.rate + i, lanes) : zero_f32();
    F32x16 step, exponent;
    if (row.bound != 0.0f) {
      step = sigmoid(mul(rate, x));
      exponent = mul(bound, step);
    } else {
      step = min(high, max(low, softplus(x)));  // NaN is kept: the second operand
      exponent = sub(zero_f32(), mul(rate, step));
    }
    if (row.decay != nullptr) store_first(row.decay + i, exp(exponent), lanes);
    if (row.step != nullptr) store_first(row.step + i, step, lanes);
  });
}

/// Two vectors of columns.
struct ColumnPair {
  F32x16 a, b;
};
MOE_INLINE ColumnPair load_pair(const float* p) { return {load(p), load(p + kLanes)}; }
MOE_INLINE void store_pair(float* p, ColumnPair x) {
  store(p, x.a);
  store(p + kLanes, x.b);
}
MOE_INLINE ColumnPair load_columns(const float* p, int columns) {
  if (columns <= kLanes) return {load_first(p, columns), zero_f32()};
  return {load(p), load_first(p + kLanes, columns - kLanes)};
}
MOE_INLINE void store_columns(float* p, ColumnPair x, int columns) {
  if (columns <= kLanes) return store_first(p, x.a, columns);
  store(p, x.a);
  store_first(p + kLanes, x.b, columns - kLanes);
}
MOE_INLINE ColumnPair add(ColumnPair x, ColumnPair y) { return {add(x.a, y.a), add(x.b, y.b)}; }
MOE_INLINE ColumnPair mul(ColumnPair x, F32x16 y) { return {mul(x.a, y), mul(x.b, y)}; }
MOE_INLINE ColumnPair fma(F32x16 x, ColumnPair y, ColumnPair z) {
  return {fma(x, y.a, z.a), fma(x, y.b, z.b)};
}

/// S = decay · S for every key; returns Sᵀk. Even and odd keys are summed apart: twice the sums
/// under way hide the latency of one.
template <bool per_key>
MOE_INLINE ColumnPair forget(float* state, int64_t keys, const float* decay, const float* key) {
  ColumnPair sum[2] = {{zero_f32(), zero_f32()}, {zero_f32(), zero_f32()}};
  const F32x16 all = set1(decay[0]);
  const auto row = [&](int64_t i, ColumnPair& into) MOE_INLINE_LAMBDA {
    float* at = state + i * kStateColumns;
    const ColumnPair kept = mul(load_pair(at), per_key ? set1(decay[i]) : all);
    store_pair(at, kept);
    into = fma(set1(key[i]), kept, into);
  };
  int64_t i = 0;
  for (; i + 2 <= keys; i += 2) {
    row(i, sum[0]);
    row(i + 1, sum[1]);
  }
  if (i < keys) row(i, sum[0]);
  return add(sum[0], sum[1]);
}

/// S = decay · S + k vᵀ; returns Sᵀq.
template <bool decays, bool per_key>
MOE_INLINE ColumnPair write(float* state, int64_t keys, const float* decay, const float* key,
                            const float* query, ColumnPair value) {
  ColumnPair sum[2] = {{zero_f32(), zero_f32()}, {zero_f32(), zero_f32()}};
  const F32x16 all = set1(decay[0]);
  const auto row = [&](int64_t i, ColumnPair& into) MOE_INLINE_LAMBDA {
    float* at = state + i * kStateColumns;
    ColumnPair kept = load_pair(at);
    if constexpr (decays) kept = mul(kept, per_key ? set1(decay[i]) : all);
    kept = fma(set1(key[i]), value, kept);
    store_pair(at, kept);
    into = fma(set1(query[i]), kept, into);
  };
  int64_t i = 0;
  for (; i + 2 <= keys; i += 2) {
    row(i, sum[0]);
    row(i + 1, sum[1]);
  }
  if (i < keys) row(i, sum[0]);
  return add(sum[0], sum[1]);
}

template <bool delta, bool per_key>
MOE_INLINE void advance_tokens(const StateCall& c) {
  for (int64_t t = 0; t < c.tokens; ++t) {
    const float* decay = c.decay + t * c.decay_stride;
    const float *key = c.key + t * c.key_stride, *query = c.query + t * c.query_stride;
    const ColumnPair given = load_columns(c.value + t * c.value_stride, c.columns);
    const F32x16 scale = set1(c.scale != nullptr ? c.scale[t * c.scale_stride] : 1.0f);
    ColumnPair out;
    if constexpr (delta) {
      const ColumnPair recalled = forget<per_key>(c.state, c.keys, decay, key);
      const ColumnPair news = {sub(given.a, recalled.a), sub(given.b, recalled.b)};
      out = write<false, per_key>(c.state, c.keys, decay, key, query, mul(news, scale));
    } else {
      out = write<true, per_key>(c.state, c.keys, decay, key, query, mul(given, scale));
    }
    if (c.skip != 0.0f) out = fma(set1(c.skip), given, out);
    store_columns(c.out + t * c.out_stride, out, c.columns);
  }
}

static void advance(const StateCall& c) noexcept {
  if (c.delta) {
    c.decay_per_key ? advance_tokens<true, true>(c) : advance_tokens<true, false>(c);
  } else {
    c.decay_per_key ? advance_tokens<false, true>(c) : advance_tokens<false, false>(c);
  }
}

/// s = e^(-rate · step) · s + step · x · B;  y = Σ s · C + D · x, states in order.
static void scan_states(const ScanCall& c) noexcept {
  for (int64_t t = 0; t < c.tokens; ++t) {
    const ColumnPair x = load_columns(c.x + t * c.x_stride, c.columns);
    const ColumnPair step = load_columns(c.step + t * c.step_stride, c.columns);
    const ColumnPair written = {mul(x.a, step.a), mul(x.b, step.b)};
    const ColumnPair back = {sub(zero_f32(), step.a), sub(zero_f32(), step.b)};
    const float *in = c.in + t * c.in_stride, *weight = c.out_weight + t * c.out_weight_stride;
    ColumnPair out = {zero_f32(), zero_f32()};
    for (int64_t n = 0; n < c.states; ++n) {
      float* at = c.state + n * kStateColumns;
      const ColumnPair rate = load_pair(c.rate + n * kStateColumns), kept = load_pair(at);
      const ColumnPair decay = {exp(mul(rate.a, back.a)), exp(mul(rate.b, back.b))};
      const ColumnPair state =
          fma(set1(in[n]), written, ColumnPair{mul(decay.a, kept.a), mul(decay.b, kept.b)});
      store_pair(at, state);
      out = fma(set1(weight[n]), state, out);
    }
    if (c.skip != nullptr) {
      const ColumnPair skip = load_columns(c.skip, c.columns);
      out = {fma(skip.a, x.a, out.a), fma(skip.b, x.b, out.b)};
    }
    store_columns(c.out + t * c.out_stride, out, c.columns);
  }
}

static constexpr RecurrenceKernels kRecurrenceKernels = {&convolve, &gate_row, &decay_row, &advance,
                                                         &scan_states};

}  // namespace moe::MOE_ISA
