#pragma once
// What happens to whole rows between the matrix products.

#include "moe/kernels/table.h"
#include "moe/simd/math.h"

namespace moe::MOE_ISA {

template <class Act>
MOE_INLINE void gate_rows(Act act, const float* pairs, int64_t count, int outputs, float* out,
                          int64_t stride) {
  for (int64_t i = 0; i < count; ++i) {
    const float* pair = pairs + i * kGemmOutputs;
    const F32x16 value = act(load(pair), load(pair + kPanelRows));
    if (outputs == kPanelRows) {
      store(out + i * stride, value);
    } else {
      store_first(out + i * stride, value, outputs);
    }
  }
}

static void gate(Activation activation, const float* pairs, int64_t count, int outputs, float* out,
                 int64_t stride) noexcept {
  const auto relu = [](F32x16 x) { return max(x, zero_f32()); };
  switch (activation) {
    case Activation::kSilu:
      return gate_rows([](F32x16 g, F32x16 u) MOE_INLINE_LAMBDA { return mul(silu(g), u); }, pairs,
                       count, outputs, out, stride);
    case Activation::kGeluTanh:
      return gate_rows([](F32x16 g, F32x16 u) MOE_INLINE_LAMBDA { return mul(gelu_tanh(g), u); },
                       pairs, count, outputs, out, stride);
    case Activation::kRelu:
      return gate_rows([=](F32x16 g, F32x16 u) MOE_INLINE_LAMBDA { return mul(relu(g), u); }, pairs,
                       count, outputs, out, stride);
    case Activation::kRelu2:
      return gate_rows([=](F32x16 g, F32x16 u)
                           MOE_INLINE_LAMBDA { return mul(mul(relu(g), relu(g)), u); },
                       pairs, count, outputs, out, stride);
    case Activation::kNone:
      return gate_rows([](F32x16 g, F32x16 u) MOE_INLINE_LAMBDA { return mul(g, u); }, pairs, count,
                       outputs, out, stride);
  }
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

static constexpr RowwiseKernels kRowwiseKernels = {&gate, &add_scaled};

}  // namespace moe::MOE_ISA
