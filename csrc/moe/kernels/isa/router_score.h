#pragma once
// A router's first stage: logits into scores, and scores into keys that rank.

#include "moe/kernels/isa/topk.h"
#include "moe/kernels/table.h"
#include "moe/simd/math.h"

namespace moe::MOE_ISA {

inline constexpr float kInf = __builtin_inff();

/// One token's arrays, each padded to whole vectors (-inf, kNoKey).
struct RouteRow {
  float* value;  // the logits that count: noise added, forbidden and NaN at -inf
  float* score;  // what weighs: may be value; for a softmax over all experts its numerators
  float* spare;
  int32_t* keys;   // what ranks
  int32_t* first;  // 0, 16, 32, …: every vector of the row
  int32_t* kept;   // room for the vectors of the kept groups
  TopScratch room;
  VectorList vectors;  // those that take part
  int group_size;
  float total;  // a softmax's denominator
  int found;    // keys that passed the filter
  bool bad;     // a NaN was met
};

/// The index-th of kRowsAtOnce.
MOE_INLINE RouteRow row_of(const RouteCall& call, int index) {
  const int64_t size = padded_experts(call.experts) + 16;
  float* at = call.scratch + index * (route_scratch_floats(call.experts) / kRowsAtOnce);
  const auto floats = [&]() MOE_INLINE_LAMBDA { return at += size, at - size; };
  const auto ints = [&]() MOE_INLINE_LAMBDA { return reinterpret_cast<int32_t*>(floats()); };
  RouteRow row{};
  row.value = floats();
  row.score = floats();
  row.spare = floats();
  row.keys = ints();
  row.first = ints();
  row.kept = ints();
  row.room = {ints(), ints(), ints()};
  row.group_size = call.experts / call.rule->groups;
  for (int32_t e = 0; e < call.experts; e += kLanes) row.first[e / kLanes] = e;
  return row;
}

MOE_INLINE F32x16 load_up_to(const float* p, int n) {
  return n >= kLanes ? load(p) : load_first(p, n);
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

/// What one token's pass over its experts reads.
struct RowInput {
  const float* logits;
  const float* noise;
  const uint8_t* forbidden;
  const float* bias;
  int experts;
};
MOE_INLINE RowInput input_of(const RouteCall& call, int64_t token) {
  return {call.logits + token * call.logits_stride,
          call.noise == nullptr ? nullptr : call.noise + token * call.noise_stride,
          call.forbidden == nullptr ? nullptr : call.forbidden + token * call.forbidden_stride,
          call.select_bias, call.experts};
}

/// `any`: the score may be a NaN or -0, as logits may (and not a sigmoid, say).
template <bool any>
MOE_INLINE void write_keys(const RowInput& in, int e, F32x16 score, RouteRow& row) {
  const int n = in.experts - e;
  if (in.bias != nullptr) score = add(score, load_up_to(in.bias + e, n));
  I32x16 key = any ? sort_key_of_any(score) : sort_key(score);
  if (in.forbidden != nullptr || n < kLanes) {
    key = select(present_lanes(in.forbidden, e, in.experts), key, set1_i32(kNoKey));
  }
  store_i32(row.keys + e, key);
}

/// Reads a token's logits and hands them on, sixteen at a time; forbidden ones as -inf.
template <class F>
MOE_INLINE void read_row(const RowInput& in, RouteRow& row, F take) {
  const F32x16 lowest = set1(-kInf);
  uint32_t nan = 0;
  for (int e = 0; e < in.experts; e += kLanes) {
    const int n = in.experts - e;
    F32x16 v = load_up_to(in.logits + e, n);
    if (in.noise != nullptr) v = add(v, load_up_to(in.noise + e, n));
    if (in.forbidden != nullptr || n < kLanes) {
      v = select(present_lanes(in.forbidden, e, in.experts), v, lowest);
    }
    nan |= to_bitmask(is_nan(v));
    take(e, v);
  }
  row.bad = nan != 0;
}

MOE_INLINE float max_of(const float* x, int n) {
  F32x16 top = set1(-kInf);
  for (int e = 0; e < n; e += kLanes) top = max(top, load(x + e));
  return reduce_max(top);
}

/// 1 / (1 + e^-x); 0 for NaN, as for -inf.
MOE_INLINE F32x16 sigmoid_or_zero(F32x16 x) {
  const F32x16 one = set1(1.0f), low = set1(-88.0f);
  const F32x16 bounded = min(max(x, low), set1(86.0f));
  const F32x16 y = div(one, add(one, exp_bounded(sub(zero_f32(), bounded))));
  return select(less(low, x), y, zero_f32());
}

/// sqrt(log(1 + e^x)); 0 for NaN, as for -inf.
MOE_INLINE F32x16 sqrt_softplus_or_zero(F32x16 number) {
  return sqrt(softplus(max(number, set1(-kInf))));
}

/// Scores that need no other expert's logit.
template <class F>
MOE_INLINE void score_each(const RowInput& in, RouteRow& row, F function) {
  read_row(in, row, [&](int e, F32x16 v) MOE_INLINE_LAMBDA {
    const F32x16 score = function(v);
    store(row.score + e, score);
    write_keys<false>(in, e, score, row);
  });
}

/// A sum of numbers from 0 to 1 in which their places do not count, so that a softmax without an
/// expert has the bytes of a softmax that never had it. Each is cut into a multiple of 2^-14 and
/// one of 2^-29; sums of either kind are exact for up to 1024 numbers (24 bits). What is left out
/// is below 2^-30 of the largest number.
struct PlacelessSum {
  F32x16 high, low;
};
MOE_INLINE PlacelessSum empty_sum() { return {zero_f32(), zero_f32()}; }

/// x rounded to multiples of the last place of `large`, which is 1.5 times a power of two.
MOE_INLINE F32x16 rounded_to_last_place(F32x16 x, float large) {
  return sub(add(x, set1(large)), set1(large));
}
MOE_INLINE void add_to(PlacelessSum& sum, F32x16 x) {
  const F32x16 high = rounded_to_last_place(x, 768.0f);
  sum.high = add(sum.high, high);
  sum.low = add(sum.low, rounded_to_last_place(sub(x, high), 0.0234375f));
}
MOE_INLINE float total_of(const PlacelessSum& sum) {
  return reduce_add(sum.high) + reduce_add(sum.low);
}

/// Softmax over all experts: score[] gets the numerators. Where nothing is added to it, it ranks as
/// its logits do, so those rank: their order survives where exponentials round to one value.
MOE_INLINE void score_softmax(const RowInput& in, bool ranks_as_logits, RouteRow& row) {
  const F32x16 lowest = set1(-kInf);
  F32x16 top = lowest;
  read_row(in, row, [&](int e, F32x16 v) MOE_INLINE_LAMBDA {
    v = max(v, lowest);
    store(row.value + e, v);
    top = max(top, v);
    if (ranks_as_logits) write_keys<true>(in, e, v, row);
  });
  top = set1(reduce_max(top));
  PlacelessSum sum = empty_sum();
  for (int e = 0; e < in.experts; e += kLanes) {
    const F32x16 y = exp(sub(load(row.value + e), top));
    store(row.score + e, y);
    add_to(sum, y);
  }
  row.total = total_of(sum);
  if (ranks_as_logits) return;
  const F32x16 total = set1(row.total);
  for (int e = 0; e < in.experts; e += kLanes) {
    // An infinite logit makes the quotient NaN.
    write_keys<true>(in, e, div(load(row.score + e), total), row);
  }
}

/// First stage of one token.
MOE_INLINE void score_row(const RouteCall& call, int64_t token, RouteRow& row) {
  const RouterRule& rule = *call.rule;
  const RowInput in = input_of(call, token);
  row.vectors = {row.first, static_cast<int>(padded_experts(call.experts) / kLanes)};
  switch (rule.score) {
    case Score::kSigmoid:
      return score_each(in, row, [](F32x16 x) MOE_INLINE_LAMBDA { return sigmoid_or_zero(x); });
    case Score::kSqrtSoftplus:
      return score_each(in, row,
                        [](F32x16 x) MOE_INLINE_LAMBDA { return sqrt_softplus_or_zero(x); });
    case Score::kSoftmax: {
      const bool grouped_by_max = rule.group_score == GroupScore::kMax && !rule.group_fill_zero;
      return score_softmax(in, in.bias == nullptr && (rule.groups == 1 || grouped_by_max), row);
    }
    case Score::kSoftmaxTopk:
    case Score::kInputSigmoid:
    case Score::kSparseMixer:
      return read_row(in, row, [&](int e, F32x16 v) MOE_INLINE_LAMBDA {
        store(row.value + e, max(v, set1(-kInf)));
        write_keys<true>(in, e, v, row);
      });
  }
}

}  // namespace moe::MOE_ISA
