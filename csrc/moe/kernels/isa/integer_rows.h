#pragma once
// Rows of integers as a tile multiplies them: the words, what sums start from, and the scales.
//
// Definition    start(r, c) = −o · Σ x over the group that starts at column c, with o the byte that
//               means zero: Σ (q − o)·x = Σ q·x − o·Σ x. Where weights have a minimum instead,
//               float_total(r, c) = Σ x. scale(r, s): the activations' own.

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

/// The same with starts collected for the whole depth block: loads at constant distances among the
/// products, which leave neither time nor registers for more.
template <class F, int R>
struct PreparedRows : RowPointers<R> {
  /// Columns between two starts: a longer group's is the first of several.
  static constexpr int kColumns = columns_of_sum<F>();
  static constexpr int kStep = kColumns == kScaleBlock ? kScaleBlock
                               : kColumns > kSumGroup  ? 2 * kSumGroup
                                                       : kSumGroup;
  static constexpr int kStarts = kDepthBlock / kStep;
  // A row's last vector reaches into the next row's.
  alignas(64) int32_t starts[R * kStarts + (kStarts < kLanes ? kLanes - kStarts : 0)];
  const TileCall& call;

  [[gnu::always_inline]] inline explicit PreparedRows(const TileCall& call_)
      : RowPointers<R>(call_), call(call_) {
    if constexpr (has_min<F>() && has_steps<F>()) return;
    const ActivationLayout& layout = *call.layout;
    const I32x16 factor = set1_i32(-zero_byte<F>(call));
    const int64_t first = call.depth_block * kStarts;
    for (int r = 0; r < R; ++r) {
      const std::byte* row = call.rows[r];
      for (int64_t i = 0; i < kStarts; i += kLanes) {
        // Beyond the row's last columns too: there are other sums behind these, or 36 bytes at
        // least up to the next line.
        I32x16 total;
        if constexpr (kStep == kScaleBlock) {
          total = load_i32(reinterpret_cast<const int32_t*>(row + layout.block_sums_at) + first);
        } else {
          const auto at = kStep == kSumGroup ? layout.short_sums_at : layout.pair_sums_at;
          const std::byte* sums = row + at + (first + i) * 2;
          total = load_short(sums);
          if constexpr (kColumns == 2 * kStep) total = add(total, load_short(sums + 2));
        }
        store_i32(starts + r * kStarts + i,
                  has_min<F>() ? bits(to_f32(total)) : mul(total, factor));
      }
    }
  }
  /// Sixteen sums of 16 bits.
  MOE_INLINE I32x16 load_short(const std::byte* sums) {
    return shift_right(bits(load(reinterpret_cast<const bf16*>(sums))), 16);
  }
  [[gnu::always_inline]] I32x16 start(int r, int64_t column) const {
    return set1_i32(has_min<F>() ? 0 : starts[r * kStarts + column / kStep]);
  }
  [[gnu::always_inline]] F32x16 float_total(int r, int64_t column) const {
    return from_bits(set1_i32(starts[r * kStarts + column / kStep]));
  }
  [[gnu::always_inline]] F32x16 scale(int r, int64_t scale_block) const {
    return set1(reinterpret_cast<const float*>(call.rows[r] + call.layout->scales_at)[scale_block]);
  }
};

}  // namespace moe::MOE_ISA
