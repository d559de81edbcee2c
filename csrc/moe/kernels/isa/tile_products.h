#pragma once
// What the tiles of a matrix product are made of: words of a few activation rows times words of one
// or two weight panels, added to sums in registers, and the requests for what is read next.

#include <type_traits>

#include "moe/kernels/isa/expand.h"
#include "moe/kernels/table.h"
#include "moe/quant/formats.h"
#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

/// One panel's range of a depth block and what is requested from memory meanwhile. Of several tiles
/// of rows, which read the range from L1, each requests a share of the next depth block: `ahead` +
/// (i >> shift) for byte i. A tile alone, which reads from memory, requests what lies
/// kPrefetchBytes before byte i: `ahead` + i, or `after` + i from byte `last` on.
struct PanelRange {
  const std::byte* blocks;
  const std::byte* ahead;
  const std::byte* after;
  int64_t last;
  int shift;
};

/// One call of a tile: R rows × P panels over one depth block.
struct TileCall {
  const std::byte* const* rows;
  const PanelRange* panels;
  int64_t first_word;   // of the depth block in an activation row
  int64_t blocks;       // weight blocks in it
  int64_t depth_block;  // which one
  int32_t offset;       // the byte that means zero, where the layout does not say
  const ActivationLayout* layout;
  float* out;
};

/// Exact path: the weights' values in float, activations in float.
template <class F>
struct ExactDot {
  static constexpr Dot kKind = Dot::kF32;
  using Weight = F32x16;
  using Sum = F32x16;
  MOE_INLINE void unit(const std::byte* unit, Weight* out) { F::template values<Vec>(unit, out); }
  MOE_INLINE Sum step(Sum sum, Words x, Weight w) { return dot_f32(sum, x, w); }
};

/// Operands as the format packs them: words of weights against words of activations.
template <class F>
struct PackedDot {
  static constexpr Dot kKind = F::kDot;
  using Weight = U8x64;
  MOE_INLINE void unit(const std::byte* unit, Weight* out) { F::template weights<Vec>(unit, out); }
};

/// bfloat16 pairs on both sides, float sums.
template <class F>
struct Bf16Dot : PackedDot<F> {
  using Sum = F32x16;
  MOE_INLINE Sum step(Sum sum, Words x, U8x64 w) { return dot_bf16(sum, x, w); }
};

/// Unsigned weight bytes × signed activation bytes, exact 32-bit sums.
template <class F>
struct IntegerDot : PackedDot<F> {
  using Sum = I32x16;
  MOE_INLINE Sum step(Sum sum, Words x, U8x64 w) { return dot_u8s8(sum, x, w); }
};

/// Weights that several tiles of rows read, the first of them from memory.
template <class F>
struct FromCache : F {
  static constexpr bool kInCache = true;
};
template <class F>
constexpr bool is_in_cache() {
  return requires { F::kInCache; };
}
/// Whether one scale holds for a whole range of the activations' scales.
template <class F>
constexpr bool is_long_group() {
  if constexpr (F::kScales == Scales::kGroup) return F::kGroup == kScaleBlock;
  return true;
}

/// A tile's rows where they lie, from the depth block on.
template <int R>
struct RowPointers {
  const uint32_t* words[R];

  [[gnu::always_inline]] inline explicit RowPointers(const TileCall& call) {
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      words[r] = reinterpret_cast<const uint32_t*>(call.rows[r]) + call.first_word;
    }
  }
  [[gnu::always_inline]] const uint32_t* at(int r, int64_t word) const { return words[r] + word; }
};

/// Words [first, last) of the kWords that start at `word`: sum[r][p] += x[r] · w[p].
template <class D, int kWords, int R, int P, class Rows>
MOE_INLINE void multiply(const Rows& x, int64_t word, const typename D::Weight (&w)[P][kWords],
                         int first, int last, typename D::Sum (&sum)[R][P]) {
  MOE_UNROLL
  for (int i = first; i < last; ++i) {
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      const Words at = broadcast_word(x.at(r, word + i));
      MOE_UNROLL
      for (int p = 0; p < P; ++p) sum[r][p] = D::step(sum[r][p], at, w[p][i]);
    }
  }
}

/// The line that is to come while a tile alone reads byte i of the range. For few rows memory is
/// asked twice as far ahead: L1 has too few lines under way to hide what memory takes.
template <class F, int R>
MOE_INLINE void request(const PanelRange& range, int64_t i) {
  if constexpr (!is_in_cache<F>()) {
    const std::byte* at = (i < range.last ? range.ahead : range.after) + i;
    if constexpr (R < kTileRows / 2) {
      prefetch(at);
      prefetch_l2(at + kPrefetchBytes);
    } else {
      prefetch_l2(at);
    }
  }
}

/// Whether a tile of several requests its share little by little. Tiles of few rows wait for
/// memory: what they asked for at once would not be under way at once. Those of many rows ask
/// before the products of a range, which need the registers.
template <class F, int R>
constexpr bool shares_in_steps() {
  return is_in_cache<F>() && R < kTileRows / 2;
}

/// Requests the share of bytes [i, i + bytes) of the ranges that one tile of several reads.
template <class F, int P>
MOE_INLINE void request_share(const TileCall& call, int64_t i, int64_t bytes) {
  if constexpr (is_in_cache<F>()) {
    for (int p = 0; p < P; ++p) {
      const PanelRange& range = call.panels[p];
      const std::byte* at = range.ahead + (i >> range.shift);
      for (int64_t line = 0; line < bytes >> range.shift; line += 64) prefetch_l2(at + line);
    }
  }
}

/// The unit at byte `at` of P panels, decoded.
template <class F, class D, int R, int P, int kWords>
MOE_INLINE void decode_unit(const TileCall& call, int64_t at,
                            typename D::Weight (&out)[P][kWords]) {
  MOE_UNROLL
  for (int p = 0; p < P; ++p) {
    MOE_UNROLL
    for (int64_t i = 0; i < F::kUnitBytes; i += 64) request<F, R>(call.panels[p], at + i);
    D::unit(call.panels[p].blocks + at, out[p]);
  }
}

/// `units` units from byte `at` of the depth block on, against R rows from `word` on.
template <class F, class D, int R, int P, class Rows>
MOE_INLINE void accumulate(const TileCall& call, const Rows& x, int64_t word, int64_t at,
                           int64_t units, typename D::Sum (&sum)[R][P]) {
  constexpr int kWords = F::kUnitDepth / depth_per_word(D::kKind);
  const auto unit = [&](int64_t u) MOE_INLINE_LAMBDA {
    typename D::Weight value[P][kWords];
    decode_unit<F, D, R, P, kWords>(call, at + u * F::kUnitBytes, value);
    multiply<D, kWords, R, P>(x, word + u * kWords, value, 0, kWords, sum);
  };
  const auto run = [&](int64_t u, int64_t end) MOE_INLINE_LAMBDA {
    if constexpr (kWords == 1) {
      // Short units: rows' pointers, if there are more than registers, are reloaded once for a
      // turn. Where a product of bytes is one instruction turns are long and few: their end is
      // foreseen.
      constexpr bool kLong = D::kKind == Dot::kU8S8 && kPanelTileRows != 0;
      constexpr int kTurn = kLong && !shares_in_steps<F, R>() ? 16 : 4;
      for (; u + kTurn <= end; u += kTurn) {
        MOE_UNROLL
        for (int i = 0; i < kTurn; ++i) unit(u + i);
      }
    }
#pragma GCC unroll 1
    for (; u < end; ++u) unit(u);
  };
  if constexpr (shares_in_steps<F, R>()) {
    constexpr int64_t kStep = 8;
    for (int64_t u = 0; u < units; u += kStep) {
      const int64_t end = units - u < kStep ? units : u + kStep;
      request_share<F, P>(call, at + u * F::kUnitBytes, (end - u) * F::kUnitBytes);
      run(u, end);
    }
  } else {
    run(0, units);
  }
}

template <class Sum, int R, int P>
MOE_INLINE void clear(Sum (&sum)[R][P]) {
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    MOE_UNROLL
    for (int p = 0; p < P; ++p) {
      if constexpr (std::is_same_v<Sum, I32x16>) {
        sum[r][p] = set1_i32(0);
      } else {
        sum[r][p] = zero_f32();
      }
    }
  }
}

}  // namespace moe::MOE_ISA
