#pragma once
// Rows of integers as a tile multiplies them: the words, what sums start from, and the scales.
//
// Definition    start(r, c) = −o · Σ x over the group that starts at column c, with o the byte that
//               means zero: Σ (q − o)·x = Σ q·x − o·Σ x. Where weights have a minimum instead,
//               float_total(r, c) = Σ x. scale(r, s): the activations' own.

#include <bit>
#include <cstring>

#include "moe/kernels/isa/tile_products.h"

namespace moe::MOE_ISA {

/// Columns whose products are summed before they are scaled.
template <class F>
constexpr int columns_of_sum() {
  if constexpr (F::kScales == Scales::kGroup) return F::kGroup;
  return kScaleBlock;
}

/// A row's activations summed over the kSums · kSumGroup columns from part `first` on.
template <int kSums>
MOE_INLINE int32_t activation_sum(const TileCall& call, int r, int64_t first) {
  const auto* sums =
      reinterpret_cast<const int32_t*>(call.rows[r] + call.layout->group_sums_at) + first;
  int32_t total = 0;
  MOE_UNROLL
  for (int i = 0; i < kSums; ++i) total += sums[i];
  return total;
}

template <class F>
constexpr bool has_min() {
  if constexpr (requires { F::kMin; }) return F::kMin;
  return false;
}

/// The byte that means zero, if there is one.
template <class F>
MOE_INLINE int32_t zero_byte(const TileCall& call) {
  if constexpr (requires { F::kOffset; }) return F::kOffset;
  return has_min<F>() ? 0 : call.offset;
}

/// Where they lie. Columns are counted from the depth block on.
template <class F, int R>
struct IntegerRows : RowPointers<R> {
  static constexpr int kSums = columns_of_sum<F>() / kSumGroup;
  const TileCall& call;

  [[gnu::always_inline]] inline explicit IntegerRows(const TileCall& call_)
      : RowPointers<R>(call_), call(call_) {}
  /// Of a group's columns.
  [[gnu::always_inline]] int32_t total(int r, int64_t column) const {
    const int64_t at = call.depth_block * kDepthBlock + column;
    if constexpr (is_long_group<F>()) {
      const std::byte* sums = call.rows[r] + call.layout->block_sums_at;
      return reinterpret_cast<const int32_t*>(sums)[at / kScaleBlock];
    } else {
      return activation_sum<kSums>(call, r, at / kSumGroup);
    }
  }
  [[gnu::always_inline]] I32x16 start(int r, int64_t column) const {
    const int32_t zero = zero_byte<F>(call);
    return set1_i32(zero == 0 ? 0 : -zero * total(r, column));
  }
  [[gnu::always_inline]] F32x16 float_total(int r, int64_t column) const {
    return set1(static_cast<float>(total(r, column)));
  }
  [[gnu::always_inline]] F32x16 scale(int r, int64_t scale_block) const {
    return set1(reinterpret_cast<const float*>(call.rows[r] + call.layout->scales_at)[scale_block]);
  }
};

/// The same with starts and scales collected for the whole depth block: loads at constant distances
/// among the products, which leave neither time nor registers for more.
template <class F, int R>
struct PreparedRows : RowPointers<R> {
  /// Columns between two starts: a longer group's is the first of several.
  static constexpr int kStep = columns_of_sum<F>() == kScaleBlock ? kScaleBlock : kSumGroup;
  static constexpr int kRanges = kDepthBlock / kScaleBlock;
  alignas(64) int32_t starts[R][kDepthBlock / kStep];
  alignas(16) float scales[R][kRanges];

  [[gnu::always_inline]] inline PreparedRows(const TileCall& call, int64_t columns)
      : RowPointers<R>(call) {
    const ActivationLayout& layout = *call.layout;
    const int32_t factor = -zero_byte<F>(call);
    for (int r = 0; r < R; ++r) {
      const std::byte* row = call.rows[r];
      const int64_t range = call.depth_block * kRanges;
      // Of ranges beyond the row's last one too: there are other sums behind these.
      std::memcpy(scales[r], row + layout.scales_at + range * 4, sizeof(scales[r]));
      if constexpr (has_min<F>() && has_steps<F>()) continue;
      if constexpr (kStep == kScaleBlock) {
        int32_t totals[kRanges];
        std::memcpy(totals, row + layout.block_sums_at + range * 4, sizeof(totals));
        for (int i = 0; i < kRanges; ++i) {
          starts[r][i] = has_min<F>() ? float_bits(totals[i]) : factor * totals[i];
        }
      } else {
        const auto* sums = reinterpret_cast<const int32_t*>(row + layout.group_sums_at) +
                           call.depth_block * (kDepthBlock / kSumGroup);
        for (int64_t i = 0; i < columns / kSumGroup; i += kLanes) {
          I32x16 total = load_i32(sums + i);
          for (int j = 1; j < columns_of_sum<F>() / kSumGroup; ++j) {
            total = add(total, load_i32(sums + i + j));
          }
          store_i32(starts[r] + i,
                    has_min<F>() ? bits(to_f32(total)) : mul(total, set1_i32(factor)));
        }
      }
    }
  }
  MOE_INLINE int32_t float_bits(int32_t total) {
    return std::bit_cast<int32_t>(static_cast<float>(total));
  }
  [[gnu::always_inline]] I32x16 start(int r, int64_t column) const {
    return set1_i32(has_min<F>() ? 0 : starts[r][column / kStep]);
  }
  [[gnu::always_inline]] F32x16 float_total(int r, int64_t column) const {
    return from_bits(set1_i32(starts[r][column / kStep]));
  }
  [[gnu::always_inline]] F32x16 scale(int r, int64_t scale_block) const {
    return set1(scales[r][scale_block % kRanges]);
  }
};

}  // namespace moe::MOE_ISA
