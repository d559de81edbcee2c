#pragma once
// Activations into the rows that dot products read (ActivationLayout).

#include "moe/kernels/table.h"
#include "moe/simd/lane_sums.h"
#ifdef __AMX_TILE__
#include "moe/kernels/isa/bf16_parts.h"
#endif

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

#ifdef __AMX_TILE__
static void activations_bf16x2(const float* x, int64_t cols, const ActivationLayout& layout,
                               std::byte* row) noexcept {
  const auto lanes = [&](int64_t k) MOE_INLINE_LAMBDA {
    const int64_t left = cols - k;
    if (left >= kLanes) return load(x + k);
    return left > 0 ? load_first(x + k, static_cast<int>(left)) : zero_f32();
  };
  std::byte* end = row + layout.words * 4;
  for (int64_t k = 0; row < end; k += 2 * kLanes) {
    F32x16 left[2] = {lanes(k), lanes(k + kLanes)};
    MOE_UNROLL
    for (int part = 0; part < parts_of(Dot::kBf16x2); ++part, row += 64) {
      const Rounded nearest = round_to_pairs(left[0], left[1]);
      store_u8(row, {nearest.pairs});
      left[0] = nearest.left[0];
      left[1] = nearest.left[1];
    }
  }
}
#endif

/// The sums of a row's bytes (ActivationLayout). Small integers: their sums in floats are exact.
static void sum_bytes(const ActivationLayout& layout, std::byte* row) noexcept {
  const auto* bytes = reinterpret_cast<const int8_t*>(row);
  auto* block_sums = reinterpret_cast<int32_t*>(row + layout.block_sums_at);
  auto* group_sums = reinterpret_cast<int32_t*>(row + layout.group_sums_at);
  auto* short_sums = reinterpret_cast<int16_t*>(row + layout.short_sums_at);
  auto* pair_sums = reinterpret_cast<int16_t*>(row + layout.pair_sums_at);
  static_assert(kSumGroup == kLanes && kDeepestBlock / kSumGroup % kSumVectors == 0);
  constexpr int kGroups = kScaleBlock / kSumGroup;
  for (int64_t g = 0; g < layout.blocks * kGroups; g += kSumVectors) {
    F32x16 value[kSumVectors];
    MOE_UNROLL
    for (int i = 0; i < kSumVectors; ++i) value[i] = load(bytes + (g + i) * kSumGroup);
    alignas(64) float sums[kSumVectors];
    sum_lanes(value, sums);
    for (int i = 0; i < kSumVectors; ++i) {
      group_sums[g + i] = static_cast<int32_t>(sums[i]);
      short_sums[g + i] = static_cast<int16_t>(sums[i]);
    }
  }
  for (int64_t block = 0; block < layout.blocks; ++block) {
    int32_t sum = 0;
    for (int64_t g = block * kGroups; g < (block + 1) * kGroups; g += 2) {
      const int32_t pair = group_sums[g] + group_sums[g + 1];
      pair_sums[g / 2] = static_cast<int16_t>(pair);
      sum += pair;
    }
    block_sums[block] = sum;
  }
}

/// int8 with one scale per kScaleBlock columns: scale = max|x| / 127. A row with NaN or Inf gets
/// NaN scales there: the damage stays visible, and in that row.
static void activations_u8s8(const float* x, int64_t cols, const ActivationLayout& layout,
                             std::byte* row) noexcept {
  auto* out = reinterpret_cast<int8_t*>(row);
  auto* scales = reinterpret_cast<float*>(row + layout.scales_at);
  for (int64_t block = 0; block < layout.blocks; ++block) {
    const int64_t begin = block * kScaleBlock;
    const int64_t rest = cols - begin;
    const int count = static_cast<int>(rest < 0 ? 0 : rest < kScaleBlock ? rest : kScaleBlock);
    const auto values = [&](int i) MOE_INLINE_LAMBDA {
      if (count - i >= kLanes) return load(x + begin + i);
      return count > i ? load_first(x + begin + i, count - i) : zero_f32();
    };
    I32x16 largest = set1_i32(0);  // as integers Inf and NaN exceed every number
    for (int i = 0; i < count; i += kLanes) largest = max(bits(abs(values(i))), largest);
    const bool bad = to_bitmask(less(set1_i32(0x7f7fffff), largest)) != 0;
    const float top = bad ? 0.0f : reduce_max(from_bits(largest));
    if (top == 0.0f) {
      scales[block] = bad ? __builtin_nanf("") : 0.0f;
      std::memset(out + begin, 0, kScaleBlock);
      continue;
    }
    scales[block] = top / 127.0f;
    // A subnormal maximum would make the inverse infinite; such a block is zero to all purposes.
    const F32x16 inverse = set1(top < 1e-30f ? 0.0f : 127.0f / top);
    MOE_UNROLL
    for (int i = 0; i < kScaleBlock; i += kLanes) {
      store_i8(out + begin + i, round_to_i32(mul(values(i), inverse)));
    }
  }
  sum_bytes(layout, row);
}

static constexpr ConvertKernels kConvertKernels = {{&activations_f32, &activations_bf16,
                                                    &activations_u8s8,
#ifdef __AMX_TILE__
                                                    &activations_bf16x2
#endif
}};

}  // namespace moe::MOE_ISA
