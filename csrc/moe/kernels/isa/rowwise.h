#pragma once
// What happens to whole rows between the matrix products.

#include <cstring>

#include "moe/kernels/table.h"
#include "moe/simd/math.h"

namespace moe::MOE_ISA {

MOE_INLINE F32x16 activate(Activation kind, F32x16 x) {
  switch (kind) {
    case Activation::kSilu:
      return silu(x);
    case Activation::kGeluTanh:
      return gelu_tanh(x);
    case Activation::kGelu:
      return gelu(x);
    case Activation::kRelu:
      return select(is_nan(x), x, max(x, zero_f32()));
    case Activation::kRelu2: {
      const F32x16 positive = select(is_nan(x), x, max(x, zero_f32()));
      return mul(positive, positive);
    }
    case Activation::kSwigluOai:  // g · sigmoid(1.702 g): gpt-oss
      return mul(x, sigmoid(mul(x, set1(1.702f))));
    case Activation::kIdentity:
      break;
  }
  return x;
}

// One loop per function: the switch is decided outside of it.
template <Activation kind>
MOE_INLINE void gate_rows(float limit, float* pairs, int64_t count, F32x16 gate_bias,
                          F32x16 up_bias) {
  for (int64_t i = 0; i < count; ++i) {
    float* pair = pairs + i * kGemmOutputs;
    F32x16 g = add(load(pair), gate_bias);
    F32x16 u = add(load(pair + kPanelRows), up_bias);
    if (limit > 0.0f) {
      // NaN is kept: min and max return the second operand.
      g = min(set1(limit), g);
      u = max(set1(-limit), min(set1(limit), u));
    }
    if constexpr (kind == Activation::kSwigluOai) u = add(u, set1(1.0f));
    store(pair, mul(activate(kind, g), u));
  }
}

template <class Body>
MOE_INLINE void for_activation(Activation kind, Body body) {
  switch (kind) {
#define MOE_CASE(k)   \
  case Activation::k: \
    return body.template operator()<Activation::k>();
    MOE_CASE(kSilu)
    MOE_CASE(kGeluTanh)
    MOE_CASE(kGelu)
    MOE_CASE(kRelu)
    MOE_CASE(kRelu2)
    MOE_CASE(kIdentity)
    MOE_CASE(kSwigluOai)
#undef MOE_CASE
  }
}

static void gate(const ActivationSpec& spec, float* pairs, int64_t count, const float* gate_bias,
                 const float* up_bias, int outputs) noexcept {
  const F32x16 gb = gate_bias != nullptr ? load_first(gate_bias, outputs) : zero_f32();
  const F32x16 ub = up_bias != nullptr ? load_first(up_bias, outputs) : zero_f32();
  for_activation(spec.kind, [&]<Activation kind>() MOE_INLINE_LAMBDA {
    gate_rows<kind>(spec.limit, pairs, count, gb, ub);
  });
}

static void write(const float* rows, int64_t count, int columns, float* out, int64_t stride,
                  bool far) noexcept {
  const bool lines = columns % kLanes == 0 && stride % kLanes == 0 &&
                     reinterpret_cast<uintptr_t>(out) % (kLanes * sizeof(float)) == 0;
  for (int64_t i = 0; i < count; ++i, rows += kGemmOutputs, out += stride) {
    if (!far || !lines) {
      std::memcpy(out, rows, static_cast<size_t>(columns) * sizeof(float));
      continue;
    }
    for (int c = 0; c < columns; c += kLanes) stream(out + c, load(rows + c));
  }
  if (far && lines) fence_streams();
}

static void activate_all(const ActivationSpec& spec, float* x, int64_t n) noexcept {
  for_activation(spec.kind, [&]<Activation kind>() MOE_INLINE_LAMBDA {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(x + i, activate(kind, load(x + i)));
    if (i < n) {
      const int rest = static_cast<int>(n - i);
      store_first(x + i, activate(kind, load_first(x + i, rest)), rest);
    }
  });
}

static void add_scaled(float* out, const float* x, float weight, int64_t n) noexcept {
  const F32x16 w = set1(weight);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, fma(w, load(x + i), load(out + i)));
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    store_first(out + i, fma(w, load_first(x + i, rest), load_first(out + i, rest)), rest);
  }
}

static void scale(float* out, const float* x, float factor, int64_t n) noexcept {
  const F32x16 w = set1(factor);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, mul(w, load(x + i)));
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    store_first(out + i, mul(w, load_first(x + i, rest)), rest);
  }
}

static constexpr RowwiseKernels kRowwiseKernels = {&gate, &write, &activate_all, &add_scaled,
                                                   &scale};

}  // namespace moe::MOE_ISA
