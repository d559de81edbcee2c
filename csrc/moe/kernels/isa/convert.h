#pragma once
// Activations into the rows that dot products read (ActivationLayout).

#include "moe/kernels/table.h"
#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

static void activations_f32(const float* x, int64_t cols, const ActivationLayout& layout,
                            std::byte* row) noexcept {
  std::memcpy(row, x, static_cast<size_t>(cols) * 4);
  std::memset(row + cols * 4, 0, static_cast<size_t>(layout.words - cols) * 4);
}

static void activations_bf16(const float* x, int64_t cols, const ActivationLayout& layout,
                             std::byte* row) noexcept {
  auto* out = reinterpret_cast<bf16*>(row);
  int64_t k = 0;
  for (; k + kLanes <= cols; k += kLanes) store(out + k, load(x + k));
  for (; k < cols; ++k) out[k] = to_bf16(x[k]);
  for (; k < layout.words * 2; ++k) out[k] = {0};
}

/// int8 with one scale per kScaleBlock columns: scale = max|x| / 127. A row with NaN or Inf gets
/// NaN scales there: the damage stays visible, and in that row.
static void activations_u8s8(const float* x, int64_t cols, const ActivationLayout& layout,
                             std::byte* row) noexcept {
  auto* out = reinterpret_cast<int8_t*>(row);
  auto* scales = reinterpret_cast<float*>(row + layout.scales_at);
  auto* block_sums = reinterpret_cast<int32_t*>(row + layout.block_sums_at);
  auto* group_sums = reinterpret_cast<int32_t*>(row + layout.group_sums_at);
  for (int64_t block = 0; block < layout.blocks; ++block) {
    const int64_t begin = block * kScaleBlock;
    const int64_t rest = cols - begin;
    const int count = static_cast<int>(rest < 0 ? 0 : rest < kScaleBlock ? rest : kScaleBlock);
    F32x16 largest = zero_f32();
    uint32_t bad = 0;
    for (int i = 0; i < count; i += kLanes) {
      const F32x16 v =
          count - i >= kLanes ? load(x + begin + i) : load_first(x + begin + i, count - i);
      largest = max(abs(v), largest);
      bad |= to_bitmask(is_nan(sub(v, v)));  // Inf − Inf is NaN
    }
    const float top = reduce_max(largest);
    if (bad != 0 || top == 0.0f) {
      scales[block] = bad != 0 ? __builtin_nanf("") : 0.0f;
      block_sums[block] = 0;
      std::memset(out + begin, 0, kScaleBlock);
      std::memset(group_sums + block * (kScaleBlock / kSumGroup), 0, kScaleBlock / kSumGroup * 4);
      continue;
    }
    scales[block] = top / 127.0f;
    // A subnormal maximum would make the inverse infinite; such a block is zero to all purposes.
    const F32x16 inverse = set1(top < 1e-30f ? 0.0f : 127.0f / top);
    int32_t block_sum = 0;
    for (int g = 0; g < kScaleBlock / kSumGroup; ++g) {
      I32x16 sum = set1_i32(0);
      for (int i = g * kSumGroup; i < (g + 1) * kSumGroup; i += kLanes) {
        F32x16 v = zero_f32();
        if (count - i >= kLanes) {
          v = load(x + begin + i);
        } else if (count > i) {
          v = load_first(x + begin + i, count - i);
        }
        const I32x16 q = round_to_i32(mul(v, inverse));
        store_i8(out + begin + i, q);
        sum = add(sum, q);
      }
      // Small integers: their sum in floats is exact.
      const auto group_sum = static_cast<int32_t>(reduce_add(to_f32(sum)));
      group_sums[block * (kScaleBlock / kSumGroup) + g] = group_sum;
      block_sum += group_sum;
    }
    block_sums[block] = block_sum;
  }
}

static constexpr ConvertKernels kConvertKernels = {
    {&activations_f32, &activations_bf16, &activations_u8s8}};

}  // namespace moe::MOE_ISA
