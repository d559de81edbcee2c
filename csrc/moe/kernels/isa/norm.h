#pragma once
// Norms of one row. The sums run over four vectors side by side and are folded in one fixed order,
// so a row's bytes depend on nothing but the row.
//
// Cost          two passes over n floats, of which the second reads L1 or L2

#include "moe/kernels/table.h"
#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

/// Σ function(x[i]) over a row; `function` maps a vector of lanes, those beyond the end count 0.
template <class F>
MOE_INLINE float sum_over_row(const float* x, int64_t n, F function) {
  F32x16 sum[4] = {zero_f32(), zero_f32(), zero_f32(), zero_f32()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    MOE_UNROLL
    for (int j = 0; j < 4; ++j) sum[j] = add(sum[j], function(load(x + i + j * kLanes)));
  }
  for (int j = 0; i < n; i += kLanes, ++j) {
    const int rest = static_cast<int>(n - i < kLanes ? n - i : kLanes);
    const F32x16 y = function(load_first(x + i, rest));
    sum[j] = add(sum[j], select(first_mask(rest), y, zero_f32()));
  }
  return reduce_add(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
}

/// out[i] = (x[i] - mean) · scale · (weight[i] + offset) + bias[i]
MOE_INLINE void write_normed(const NormRow& row, const float* x, float mean, float scale) {
  const F32x16 m = set1(mean), s = set1(scale), o = set1(row.offset);
  for (int64_t i = 0; i < row.n; i += kLanes) {
    const int rest = static_cast<int>(row.n - i < kLanes ? row.n - i : kLanes);
    F32x16 y = mul(sub(load_first(x + i, rest), m), s);
    if (row.weight != nullptr) y = mul(add(load_first(row.weight + i, rest), o), y);
    if (row.bias != nullptr) y = add(y, load_first(row.bias + i, rest));
    store_first(row.out + i, y, rest);
  }
}

/// The row to be normed: x, or x + residual, which is written to sum (or to out).
MOE_INLINE const float* add_residual(const NormRow& row) {
  if (row.residual == nullptr) return row.x;
  float* sum = row.sum != nullptr ? row.sum : row.out;
  for (int64_t i = 0; i < row.n; i += kLanes) {
    const int rest = static_cast<int>(row.n - i < kLanes ? row.n - i : kLanes);
    store_first(sum + i, add(load_first(row.x + i, rest), load_first(row.residual + i, rest)),
                rest);
  }
  return sum;
}

static void rms_norm(const NormRow& row) noexcept {
  const float* x = add_residual(row);
  const auto square = [](F32x16 v) MOE_INLINE_LAMBDA { return mul(v, v); };
  const float mean_square = sum_over_row(x, row.n, square) / static_cast<float>(row.n);
  write_normed(row, x, 0.0f, 1.0f / __builtin_sqrtf(mean_square + row.eps));
}

static void layer_norm(const NormRow& row) noexcept {
  const float* x = add_residual(row);
  const auto same = [](F32x16 v) MOE_INLINE_LAMBDA { return v; };
  const float mean = sum_over_row(x, row.n, same) / static_cast<float>(row.n);
  const auto deviation = [m = set1(mean)](F32x16 v) MOE_INLINE_LAMBDA {
    const F32x16 d = sub(v, m);
    return mul(d, d);
  };
  const float variance = sum_over_row(x, row.n, deviation) / static_cast<float>(row.n);
  write_normed(row, x, mean, 1.0f / __builtin_sqrtf(variance + row.eps));
}

static constexpr NormKernels kNormKernels = {&rms_norm, &layer_norm};

}  // namespace moe::MOE_ISA
