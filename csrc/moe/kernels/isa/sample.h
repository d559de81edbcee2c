#pragma once
// What the two ends of a model read: rows of an embedding table, rows of logits.
//
// Regularities  a row of logits is 32 to 256 thousand floats: it is read as few times as possible

#include "moe/kernels/table.h"
#include "moe/simd/math.h"

namespace moe::MOE_ISA {

template <class T>
MOE_INLINE void widen_row(const T* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(x + i));
  for (; i < n; ++i) out[i] = to_float(x[i]);
}

static void widen(const void* x, DType dtype, int64_t n, float* out) noexcept {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, x, static_cast<size_t>(n) * 4);
      return;
    case DType::kBf16:
      return widen_row(static_cast<const bf16*>(x), n, out);
    case DType::kF16:
      return widen_row(static_cast<const f16*>(x), n, out);
  }
}

static LogitScan scan(const float* logits, int64_t n) noexcept {
  const F32x16 lowest = set1(-__builtin_inff());
  F32x16 top[4] = {lowest, lowest, lowest, lowest};
  uint32_t nan = 0;
  const auto see = [&](int j, F32x16 v) MOE_INLINE_LAMBDA {
    nan |= to_bitmask(is_nan(v));
    top[j] = max(top[j], v);
  };
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    MOE_UNROLL
    for (int j = 0; j < 4; ++j) see(j, load(logits + i + j * kLanes));
  }
  for (; i < n; i += kLanes) {
    const int rest = static_cast<int>(n - i < kLanes ? n - i : kLanes);
    see(0, select(first_mask(rest), load_first(logits + i, rest), lowest));
  }
  LogitScan result{reduce_max(max(max(top[0], top[1]), max(top[2], top[3]))), nan != 0, 0};
  if (result.has_nan) return result;
  const F32x16 wanted = set1(result.top);
  for (i = 0; i + kLanes <= n; i += kLanes) {
    const uint32_t found = to_bitmask(equal(load(logits + i), wanted));
    if (found != 0) {
      result.first = i + __builtin_ctz(found);
      return result;
    }
  }
  while (logits[i] != result.top) ++i;
  result.first = i;
  return result;
}

static void exponentials(const float* x, float top, float temperature, int64_t n,
                         float* out) noexcept {
  const F32x16 t = set1(top), divisor = set1(temperature);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int rest = static_cast<int>(n - i < kLanes ? n - i : kLanes);
    store_first(out + i, exp(div(sub(load_first(x + i, rest), t), divisor)), rest);
  }
}

static constexpr SampleKernels kSampleKernels = {&widen, &scan, &exponentials};

}  // namespace moe::MOE_ISA
