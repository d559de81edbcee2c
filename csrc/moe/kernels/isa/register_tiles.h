#pragma once
// A tile of the matrix product: a few activation rows × one or two panels over a depth block, their
// sums in registers.
//
// Definition    Floats: a block's products in order of the depth, added to what is there. Integers:
//               exact sums of the columns that share a scale; scaled, minima and the activations'
//               scales last, in one order for every format, number of rows and instruction set.

#include "moe/kernels/isa/integer_rows.h"

namespace moe::MOE_ISA {

/// A depth block in floats: added to out, or written if it is the first. Where groups have scales
/// each group's sum is scaled and added.
template <class F, class D, int R, int P>
MOE_INLINE void float_tile(const TileCall& call, const RowPointers<R>& x) {
  F32x16 sum[R][P];
  const auto output = [&](int r, int p) MOE_INLINE_LAMBDA {
    return call.out + r * kGemmOutputs + p * kPanelRows;
  };
  if constexpr (F::kScales == Scales::kGroup) {
    static_assert(F::kGroup == F::kDepth);
    for (int64_t b = 0; b < call.blocks; ++b) {
      clear(sum);
      if constexpr (!shares_in_steps<F, R>()) {
        request_share<F, P>(call, b * F::kBlockBytes, F::kBlockBytes);
      }
      accumulate<F, D, R, P>(call, x, b * (F::kDepth / depth_per_word(D::kKind)),
                             b * F::kBlockBytes, F::kDepth / F::kUnitDepth, sum);
      MOE_UNROLL
      for (int p = 0; p < P; ++p) {
        F32x16 scale, min;
        F::template scale<Vec>(call.panels[p].blocks + b * F::kBlockBytes, 0, scale, min);
        MOE_UNROLL
        for (int r = 0; r < R; ++r) {
          float* out = output(r, p);
          const bool first = call.depth_block == 0 && b == 0;
          store(out, first ? mul(sum[r][p], scale) : fma(sum[r][p], scale, load(out)));
        }
      }
    }
  } else {
    constexpr int64_t kSpan = 32;  // units
    constexpr int kUnitWords = F::kUnitDepth / depth_per_word(D::kKind);
    const int64_t units = call.blocks * (F::kDepth / F::kUnitDepth);
    clear(sum);
    for (int64_t u = 0; u < units; u += kSpan) {
      const int64_t at = u * F::kUnitBytes;
      if constexpr (!shares_in_steps<F, R>()) request_share<F, P>(call, at, kSpan * F::kUnitBytes);
      accumulate<F, D, R, P>(call, x, u * kUnitWords, at, units - u < kSpan ? units - u : kSpan,
                             sum);
    }
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      MOE_UNROLL
      for (int p = 0; p < P; ++p) {
        float* out = output(r, p);
        store(out, call.depth_block == 0 ? sum[r][p] : add(load(out), sum[r][p]));
      }
    }
  }
}

/// Integers of a run of columns that share the weights' scale: at most 128 · 255 · 127 < 2^22. The
/// weights' offset o enters as the start of the sum, Σ (q − o)·x = Σ q·x − o·Σ x.
template <int R, int P, class Rows>
MOE_INLINE void start_sums(const Rows& x, int64_t column, I32x16 (&sum)[R][P]) {
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    const I32x16 start = x.start(r, column);
    MOE_UNROLL
    for (int p = 0; p < P; ++p) sum[r][p] = start;
  }
}

/// Where a column of a depth block lies: its block, and its unit there.
template <class F>
MOE_INLINE int64_t block_at(int64_t column) {
  return column / F::kDepth * F::kBlockBytes;
}
template <class F>
MOE_INLINE int64_t unit_at(int64_t column) {
  return block_at<F>(column) + column % F::kDepth / F::kUnitDepth * F::kUnitBytes;
}

/// The sums of the group that starts at `column` times its scales (or steps), added to value (or
/// written), and the minima times Σ x.
template <class F, bool kWrite, int R, int P, class Rows>
MOE_INLINE void add_group(const TileCall& call, const Rows& x, int64_t column,
                          const I32x16 (&sum)[R][P], F32x16 (&value)[R][P]) {
  constexpr int64_t kScaleBytes = (F::kBlockBytes - F::kScalesAt) / (F::kDepth / F::kGroup);
  const int group = static_cast<int>(column % F::kDepth) / F::kGroup;
  MOE_UNROLL
  for (int p = 0; p < P; ++p) {
    const int64_t at = block_at<F>(column);
    request<F, R>(call.panels[p], at + F::kScalesAt + group * kScaleBytes);
    F32x16 scale, min;
    load_scale<F>(call.panels[p].blocks + at, group, scale, min);
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      const F32x16 q = to_f32(sum[r][p]);
      value[r][p] = kWrite ? mul(q, scale) : fma(q, scale, value[r][p]);
      if constexpr (F::kMin && !has_steps<F>()) {
        value[r][p] = fma(x.float_total(r, column), min, value[r][p]);
      }
    }
  }
}

/// The same in integers, times the group's step.
template <class F, bool kWrite, int R, int P, class Rows>
MOE_INLINE void add_group(const TileCall& call, const Rows&, int64_t column,
                          const I32x16 (&sum)[R][P], I32x16 (&value)[R][P]) {
  constexpr int64_t kScaleBytes = (F::kBlockBytes - F::kScalesAt) / (F::kDepth / F::kGroup);
  const int group = static_cast<int>(column % F::kDepth) / F::kGroup;
  MOE_UNROLL
  for (int p = 0; p < P; ++p) {
    const int64_t at = block_at<F>(column);
    request<F, R>(call.panels[p], at + F::kScalesAt + group * kScaleBytes);
    I32x16 step, min;
    F::template steps<Vec>(call.panels[p].blocks + at, group, step, min);
    MOE_UNROLL
    for (int r = 0; r < R; ++r) value[r][p] = add(value[r][p], mul(sum[r][p], step));
  }
}

template <int R, int P>
MOE_INLINE void to_floats(const I32x16 (&sum)[R][P], F32x16 (&value)[R][P]) {
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    MOE_UNROLL
    for (int p = 0; p < P; ++p) value[r][p] = to_f32(sum[r][p]);
  }
}

/// Groups shorter than a range of the activations' scales: columns [begin, end) of a depth block.
template <class F, class Value, int R, int P, class Rows>
MOE_INLINE void add_groups(const TileCall& call, const Rows& x, int64_t begin, int64_t end,
                           Value (&value)[R][P]) {
  constexpr int kUnitWords = F::kUnitDepth / 4;
  constexpr int kSpan = F::kUnitDepth > F::kGroup ? F::kUnitDepth : F::kGroup;
  clear(value);
  for (int64_t column = begin; column < end; column += kSpan) {
    const int64_t at = unit_at<F>(column), word = column / 4;
    I32x16 sum[R][P];
    if constexpr (kSpan == F::kGroup) {
      start_sums(x, column, sum);
      if constexpr (shares_in_steps<F, R>()) {
        request_share<F, P>(call, at, F::kGroup / F::kUnitDepth * F::kUnitBytes);
      }
      MOE_UNROLL  // a loop would keep sums in memory
          for (int u = 0; u < F::kGroup / F::kUnitDepth; ++u) {
        U8x64 weight[P][kUnitWords];
        decode_unit<F, IntegerDot<F>, R, P, kUnitWords>(call, at + u * F::kUnitBytes, weight);
        multiply<IntegerDot<F>, kUnitWords, R, P>(x, word + u * kUnitWords, weight, 0, kUnitWords,
                                                  sum);
      }
      add_group<F, false, R, P>(call, x, column, sum, value);
    } else {
      U8x64 weight[P][kUnitWords];
      decode_unit<F, IntegerDot<F>, R, P, kUnitWords>(call, at, weight);
      MOE_UNROLL
      for (int g = 0; g < F::kUnitDepth / F::kGroup; ++g) {
        const int64_t group = column + g * F::kGroup;
        start_sums(x, group, sum);
        multiply<IntegerDot<F>, kUnitWords, R, P>(x, word, weight, g * F::kGroup / 4,
                                                  (g + 1) * F::kGroup / 4, sum);
        add_group<F, false, R, P>(call, x, group, sum, value);
      }
    }
  }
}

/// Columns that share a minimum.
template <class F>
constexpr int min_group() {
  if constexpr (requires { F::kMinGroup; }) return F::kMinGroup;
  return F::kGroup;
}
/// The minima of the groups of a depth block's column and of the next, side by side in 16 bits: not
/// negative, and below 2^15.
template <class F>
MOE_INLINE I32x16 min_pair(const std::byte* blocks, int64_t column) {
  const auto inner = static_cast<int>(column % F::kDepth);
  if constexpr (requires { F::kMinGroup; }) {
    return F::min_pair(blocks + block_at<F>(column), inner / F::kMinGroup / 2);
  } else {
    I32x16 step, low, high;
    F::template steps<Vec>(blocks + block_at<F>(column), inner / F::kGroup, step, low);
    const int64_t second = column + F::kGroup;
    F::template steps<Vec>(blocks + block_at<F>(second),
                           static_cast<int>(second % F::kDepth) / F::kGroup, step, high);
    return add(low, shift_left(high, 16));
  }
}

/// Scales in two levels: value, the sum of the groups' integers times their steps, times d, and the
/// minima, whose sum is an integer too, times their unit.
template <class F, int R, int P>
MOE_INLINE void add_units(const TileCall& call, int64_t begin, int64_t end, F32x16 (&value)[R][P]) {
  I32x16 least[R][P];
  if constexpr (F::kMin) {
    // The minima of two groups and those groups' Σ x make a word each.
    constexpr int kGroup = min_group<F>();
    static_assert(kGroup == kSumGroup || kGroup == 2 * kSumGroup);
    const int64_t sums_at =
        kGroup == kSumGroup ? call.layout->short_sums_at : call.layout->pair_sums_at;
    clear(least);
    for (int64_t column = begin; column < end; column += 2 * kGroup) {
      I32x16 pair[P];
      MOE_UNROLL
      for (int p = 0; p < P; ++p) pair[p] = min_pair<F>(call.panels[p].blocks, column);
      const int64_t at = sums_at + (call.depth_block * kDepthBlock + column) / kGroup * 2;
      MOE_UNROLL
      for (int r = 0; r < R; ++r) {
        const Words sums = broadcast_word(reinterpret_cast<const uint32_t*>(call.rows[r] + at));
        MOE_UNROLL
        for (int p = 0; p < P; ++p) least[r][p] = dot_i16(least[r][p], sums, pair[p]);
      }
    }
  }
  MOE_UNROLL
  for (int p = 0; p < P; ++p) {
    F32x16 d, unit;
    F::template units<Vec>(call.panels[p].blocks + block_at<F>(begin), d, unit);
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      value[r][p] = mul(value[r][p], d);
      if constexpr (F::kMin) value[r][p] = fma(to_f32(least[r][p]), unit, value[r][p]);
    }
  }
}

// isa/narrow_tiles.h
template <class F, int R>
MOE_INLINE void narrow_range(const TileCall& call, const RowPointers<R>& x, int64_t begin,
                             int64_t end, F32x16 (&value)[R][1]);

/// A depth block in integers, one range of the activations' scales after the other.
template <class F, int R, int P, class Rows>
MOE_INLINE void integer_tile(const TileCall& call, const Rows& x, int64_t columns) {
  int64_t scale_block = call.depth_block * (kDepthBlock / kScaleBlock);
  for (int64_t begin = 0; begin < columns; begin += kScaleBlock, ++scale_block) {
    const int64_t end = columns - begin < kScaleBlock ? columns : begin + kScaleBlock;
    F32x16 value[R][P];
    if constexpr (is_narrow<F>() || !shares_in_steps<F, R>()) {
      request_share<F, P>(call, unit_at<F>(begin), unit_at<F>(end) - unit_at<F>(begin));
    }
    if constexpr (is_narrow<F>()) {
      narrow_range<F>(call, x, begin, end, value);
    } else if constexpr (is_long_group<F>()) {
      I32x16 sum[R][P];
      start_sums(x, begin, sum);
      accumulate<F, IntegerDot<F>, R, P>(call, x, begin / 4, unit_at<F>(begin),
                                         (end - begin) / F::kUnitDepth, sum);
      if constexpr (F::kScales == Scales::kGroup && !has_steps<F>()) {
        add_group<F, true, R, P>(call, x, begin, sum, value);
      } else {
        to_floats(sum, value);
      }
    } else if constexpr (step_sums<F>() == Steps::kIntegers) {
      I32x16 sum[R][P];
      add_groups<F>(call, x, begin, end, sum);
      to_floats(sum, value);
    } else if constexpr (step_sums<F>() == Steps::kHalves) {
      F32x16 first[R][P];
      add_groups<F>(call, x, begin, begin + kScaleBlock / 2, first);
      add_groups<F>(call, x, begin + kScaleBlock / 2, end, value);
      for (int r = 0; r < R; ++r) {
        for (int p = 0; p < P; ++p) value[r][p] = add(first[r][p], value[r][p]);
      }
    } else {
      add_groups<F>(call, x, begin, end, value);
    }
    if constexpr (has_steps<F>() && !is_narrow<F>()) add_units<F, R, P>(call, begin, end, value);
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      const F32x16 scale = x.scale(r, scale_block);
      MOE_UNROLL
      for (int p = 0; p < P; ++p) {
        float* out = call.out + r * kGemmOutputs + p * kPanelRows;
        store(out, scale_block == 0 ? mul(value[r][p], scale) : fma(value[r][p], scale, load(out)));
      }
    }
  }
}

template <class F, class D, int R, int P>
[[gnu::noinline]] static void tile(const TileCall& call) noexcept {
  if constexpr (D::kKind == Dot::kU8S8) {
    const int64_t columns = call.blocks * F::kDepth;
    if constexpr (!is_narrow<F>() && (is_in_cache<F>() || R > 2)) {
      integer_tile<F, R, P>(call, PreparedRows<F, R>(call), columns);
    } else {
      integer_tile<F, R, P>(call, IntegerRows<F, R>(call), columns);
    }
  } else {
    float_tile<F, D, R, P>(call, RowPointers<R>(call));
  }
}

/// Rows of a tile of integers and as many floats, which they are added to: with two panels 28
/// registers, 2 of weights and a row's word where a product of bytes takes none of its own.
inline constexpr int kGroupTileRows = kPanelTileRows != 0 ? 7 : (kTileRows + 1) / 2;

/// Rows of a register tile: fewer where floats and integers are summed side by side, more where a
/// float's word is a weight as it lies in memory. Integers come in as few as keep all rows'
/// pointers in registers: their products leave no time to reload them.
template <class F, class D>
constexpr int tile_rows() {
  if constexpr (std::is_same_v<F, F32Format>) return kFloatTileRows;
  if constexpr (D::kKind == Dot::kU8S8) {
    return is_long_group<F>() && !is_narrow<F>() ? kIntegerTileRows : kGroupTileRows;
  }
  return kTileRows;
}

}  // namespace moe::MOE_ISA
