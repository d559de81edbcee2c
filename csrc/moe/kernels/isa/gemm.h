#pragma once
// The matrix product of a segment: activation rows × two weight panels, generic over the format.
//
// Shapes        x [count, depth], panels 2 × [16, depth] → out [count, 32]
// Definition    out[t][n] = Σ_b  Σ_{k in block b}  x[t][k] · w[n][k]      b: kDepthBlock columns
//               The inner sum runs in order of k, the blocks are added in order: one row's bytes do
//               not depend on how many rows come with it, nor on the tile's height.
// Regularities  count is 1 in decode: the weights stream past once, from memory.
//               count is large in prompts: a depth block of the panels (<= 64 KB) stays in L2 while
//               all row tiles pass, decoded once for all of them (isa/expand.h).
// Cost          2 · count · 32 · depth operations, panel bytes once per call.

#include <type_traits>

#include "moe/kernels/isa/expand.h"
#include "moe/kernels/table.h"
#include "moe/quant/formats.h"
#include "moe/simd/vec.h"
#ifdef __AMX_TILE__
#include "moe/kernels/isa/group_tiles.h"
#endif

namespace moe::MOE_ISA {

/// Rows up to which a tile decodes the weights itself: they stream from memory once anyway.
inline constexpr int kDirectRows = 2;
/// Rows from which on integers gain by AMX, and where a word needs no decoding.
inline constexpr int kFewestTileRows = 8, kFewestCopiedRows = 24;

/// One panel's range of a depth block. While byte i of it is read, `ahead` + (i >> shift) is
/// requested: with several tiles of rows, each requests its share of the next depth block, so that
/// reading goes on under the multiplications. A single tile requests what lies kPrefetchBytes
/// before it; from byte `last` on that is `after`, relative to i as well.
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

/// Whether the layout is one of expand.h's.
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

/// Words [first, last) of the kWords that start at `word`: sum[r][p] += x[r] · w[p].
template <class D, int kWords, int R, int P>
MOE_INLINE void multiply(const uint32_t* const (&x)[R], int64_t word,
                         const typename D::Weight (&w)[P][kWords], int first, int last,
                         typename D::Sum (&sum)[R][P]) {
  MOE_UNROLL
  for (int i = first; i < last; ++i) {
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      const Words at = broadcast_word(x[r] + word + i);
      MOE_UNROLL
      for (int p = 0; p < P; ++p) sum[r][p] = D::step(sum[r][p], at, w[p][i]);
    }
  }
}

/// The line that is to come while byte i of the range is read.
template <int R>
MOE_INLINE void request(const PanelRange& range, int64_t i) {
  const std::byte* at = (i < range.last ? range.ahead : range.after) + (i >> range.shift);
  // Many rows read the block that is in L1 while the next one arrives.
  if constexpr (R < kTileRows / 2) {
    prefetch(at);
  } else {
    prefetch_l2(at);
  }
}

/// The unit at byte `at` of P panels, decoded.
template <class F, class D, int R, int P, int kWords>
MOE_INLINE void decode_unit(const TileCall& call, int64_t at,
                            typename D::Weight (&out)[P][kWords]) {
  MOE_UNROLL
  for (int p = 0; p < P; ++p) {
    MOE_UNROLL
    for (int64_t i = 0; i < F::kUnitBytes; i += 64) request<R>(call.panels[p], at + i);
    D::unit(call.panels[p].blocks + at, out[p]);
  }
}

/// `units` units from byte `at` of the depth block on, against R rows from `word` on.
template <class F, class D, int R, int P>
MOE_INLINE void accumulate(const TileCall& call, const uint32_t* const (&x)[R], int64_t word,
                           int64_t at, int64_t units, typename D::Sum (&sum)[R][P]) {
  constexpr int kWords = F::kUnitDepth / depth_per_word(D::kKind);
  const auto unit = [&](int64_t u) MOE_INLINE_LAMBDA {
    typename D::Weight value[P][kWords];
    decode_unit<F, D, R, P, kWords>(call, at + u * F::kUnitBytes, value);
    multiply<D, kWords, R, P>(x, word + u * kWords, value, 0, kWords, sum);
  };
  int64_t u = 0;
  if constexpr (kWords == 1) {
    // Short units: the rows' pointers, more than there are registers, are reloaded once for four.
    for (; u + 4 <= units; u += 4) {
      MOE_UNROLL
      for (int i = 0; i < 4; ++i) unit(u + i);
    }
  }
  for (; u < units; ++u) unit(u);
}

template <int R, int P>
MOE_INLINE void clear(F32x16 (&sum)[R][P]) {
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    MOE_UNROLL
    for (int p = 0; p < P; ++p) sum[r][p] = zero_f32();
  }
}

/// A depth block in floats: added to out, or written if it is the first. Where groups have scales
/// each group's sum is scaled and added.
template <class F, class D, int R, int P>
MOE_INLINE void float_tile(const TileCall& call, const uint32_t* const (&x)[R]) {
  F32x16 sum[R][P];
  const auto output = [&](int r, int p) MOE_INLINE_LAMBDA {
    return call.out + r * kGemmOutputs + p * kPanelRows;
  };
  if constexpr (F::kScales == Scales::kGroup) {
    static_assert(F::kGroup == F::kDepth);
    for (int64_t b = 0; b < call.blocks; ++b) {
      clear(sum);
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
    clear(sum);
    accumulate<F, D, R, P>(call, x, 0, 0, call.blocks * (F::kDepth / F::kUnitDepth), sum);
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

/// Integers of a run of columns that share the weights' scale: at most 128 · 255 · 127 < 2^22. The
/// weights' offset o enters as the start of the sum, Σ (q − o)·x = Σ q·x − o·Σ x.
template <class F, int R, int P>
MOE_INLINE void start_sums(const TileCall& call, const int32_t (&total)[R], I32x16 (&sum)[R][P]) {
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    I32x16 start = set1_i32(0);
    if constexpr (requires { F::kOffset; }) {
      if constexpr (F::kOffset != 0) start = set1_i32(-F::kOffset * total[r]);
    } else if constexpr (!F::kMin) {
      start = set1_i32(-call.offset * total[r]);
    }
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

/// The sums of the group that starts at `column` times its scales, added to value (or written), and
/// the minima times Σ x.
template <class F, bool kWrite, int R, int P>
MOE_INLINE void add_group(const TileCall& call, int64_t column, const int32_t (&total)[R],
                          const I32x16 (&sum)[R][P], F32x16 (&value)[R][P]) {
  constexpr int64_t kScaleBytes = (F::kBlockBytes - F::kScalesAt) / (F::kDepth / F::kGroup);
  const int group = static_cast<int>(column % F::kDepth) / F::kGroup;
  MOE_UNROLL
  for (int p = 0; p < P; ++p) {
    const int64_t at = block_at<F>(column);
    request<R>(call.panels[p], at + F::kScalesAt + group * kScaleBytes);
    F32x16 scale, min;
    F::template scale<Vec>(call.panels[p].blocks + at, group, scale, min);
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      const F32x16 q = to_f32(sum[r][p]);
      value[r][p] = kWrite ? mul(q, scale) : fma(q, scale, value[r][p]);
      if constexpr (F::kMin) {
        value[r][p] = fma(set1(static_cast<float>(total[r])), min, value[r][p]);
      }
    }
  }
}

/// Groups shorter than a range of the activations' scales: columns [begin, end) of a depth block.
template <class F, int R, int P>
MOE_INLINE void add_groups(const TileCall& call, const uint32_t* const (&x)[R], int64_t begin,
                           int64_t end, F32x16 (&value)[R][P]) {
  constexpr int kSums = F::kGroup / kSumGroup;
  constexpr int kUnitWords = F::kUnitDepth / 4;
  constexpr int kSpan = F::kUnitDepth > F::kGroup ? F::kUnitDepth : F::kGroup;
  clear(value);
  for (int64_t column = begin; column < end; column += kSpan) {
    const int64_t at = unit_at<F>(column), word = column / 4;
    const int64_t first_sum = (call.depth_block * kDepthBlock + column) / kSumGroup;
    I32x16 sum[R][P];
    int32_t total[R];
    if constexpr (kSpan == F::kGroup) {
      for (int r = 0; r < R; ++r) total[r] = activation_sum<kSums>(call, r, first_sum);
      start_sums<F, R, P>(call, total, sum);
      accumulate<F, IntegerDot<F>, R, P>(call, x, word, at, F::kGroup / F::kUnitDepth, sum);
      add_group<F, false, R, P>(call, column, total, sum, value);
    } else {
      U8x64 weight[P][kUnitWords];
      decode_unit<F, IntegerDot<F>, R, P, kUnitWords>(call, at, weight);
      MOE_UNROLL
      for (int g = 0; g < F::kUnitDepth / F::kGroup; ++g) {
        for (int r = 0; r < R; ++r) {
          total[r] = activation_sum<kSums>(call, r, first_sum + g * kSums);
        }
        start_sums<F, R, P>(call, total, sum);
        multiply<IntegerDot<F>, kUnitWords, R, P>(x, word, weight, g * F::kGroup / 4,
                                                  (g + 1) * F::kGroup / 4, sum);
        add_group<F, false, R, P>(call, column + g * F::kGroup, total, sum, value);
      }
    }
  }
}

/// A depth block in integers, one range of the activations' scales after the other.
template <class F, int R, int P>
MOE_INLINE void integer_tile(const TileCall& call, const uint32_t* const (&x)[R]) {
  const ActivationLayout& layout = *call.layout;
  const int64_t columns = call.blocks * F::kDepth;
  int64_t scale_block = call.depth_block * (kDepthBlock / kScaleBlock);
  for (int64_t begin = 0; begin < columns; begin += kScaleBlock, ++scale_block) {
    const int64_t end = columns - begin < kScaleBlock ? columns : begin + kScaleBlock;
    F32x16 value[R][P];
    if constexpr (is_long_group<F>()) {
      int32_t total[R];
      for (int r = 0; r < R; ++r) {
        total[r] =
            reinterpret_cast<const int32_t*>(call.rows[r] + layout.block_sums_at)[scale_block];
      }
      I32x16 sum[R][P];
      start_sums<F, R, P>(call, total, sum);
      accumulate<F, IntegerDot<F>, R, P>(call, x, begin / 4, unit_at<F>(begin),
                                         (end - begin) / F::kUnitDepth, sum);
      if constexpr (F::kScales == Scales::kGroup) {
        add_group<F, true, R, P>(call, begin, total, sum, value);
      } else {
        MOE_UNROLL
        for (int r = 0; r < R; ++r) {
          MOE_UNROLL
          for (int p = 0; p < P; ++p) value[r][p] = to_f32(sum[r][p]);
        }
      }
    } else {
      add_groups<F, R, P>(call, x, begin, end, value);
    }
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      const auto* scales = reinterpret_cast<const float*>(call.rows[r] + layout.scales_at);
      const F32x16 scale = set1(scales[scale_block]);
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
  const uint32_t* x[R];
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    x[r] = reinterpret_cast<const uint32_t*>(call.rows[r]) + call.first_word;
  }
  if constexpr (D::kKind == Dot::kU8S8) {
    integer_tile<F, R, P>(call, x);
  } else {
    float_tile<F, D, R, P>(call, x);
  }
}

/// Rows of a register tile: half as many where floats and integers are summed side by side.
template <class F, class D>
constexpr int tile_rows() {
  if constexpr (D::kKind == Dot::kU8S8) {
    if constexpr (!is_long_group<F>()) return (kTileRows + 1) / 2;
  }
  return kTileRows;
}

using TileFn = void (*)(const TileCall&) noexcept;

template <class F, class D, int P, int... R>
struct Tiles {
  static constexpr TileFn kByRows[] = {nullptr, &tile<F, D, R, P>...};
};
template <class F, class D, int P, class Rows>
struct TilesUpTo;
template <int... R>
struct RowCounts {};
template <int n, int... R>
struct CountTo : CountTo<n - 1, n, R...> {};
template <int... R>
struct CountTo<0, R...> {
  using Type = RowCounts<R...>;
};
template <class F, class D, int P, int... R>
struct TilesUpTo<F, D, P, RowCounts<R...>> : Tiles<F, D, P, R...> {};

/// One depth block, `bytes` of each panel in the layout F, in tiles of at most kRows rows. `next`
/// is what is read from memory after it, and a 2^next_shift-th of `bytes` long.
template <class F, class D, int kRows>
MOE_INLINE void run_tiles(TileCall call, int64_t count, const std::byte* const (&panels)[2],
                          const std::byte* const (&next)[2], int next_shift) {
  using Table = TilesUpTo<F, D, kTilePanels, typename CountTo<kRows>::Type>;
  // Ragged counts are spread evenly: 13 rows are 7 + 6, not 12 + 1.
  const int64_t tiles = (count + kRows - 1) / kRows;
  const int shift = 63 - __builtin_clzll(static_cast<unsigned long long>(tiles));
  const int64_t bytes = call.blocks * F::kBlockBytes;
  const std::byte* const* rows = call.rows;
  float* out = call.out;
  PanelRange ranges[2];
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = t * count / tiles;
    const int64_t height = (t + 1) * count / tiles - begin;
    for (int p = 0; p < 2; ++p) {
      ranges[p] = {panels[p], panels[p], panels[p], bytes, shift + next_shift};
      if (tiles == 1 && !is_in_cache<F>()) {
        ranges[p].ahead += kPrefetchBytes;
        ranges[p].last = bytes - kPrefetchBytes;
        ranges[p].after = next[p] - ranges[p].last;
      } else if (t >> shift == 0) {
        ranges[p].ahead = next[p] + ((t * bytes) >> (shift + next_shift));
      }  // else all is requested
    }
    call.rows = rows + begin;
    for (int p = 0; p < 2; p += kTilePanels) {
      call.panels = ranges + p;
      call.out = out + begin * kGemmOutputs + p * kPanelRows;
      Table::kByRows[height](call);
    }
  }
}

/// Rows from which on AMX multiplies F in the layout E. Integers give the same bytes either way,
/// pairs do not.
template <class F, class E, class D>
constexpr int fewest_tile_rows() {
  if constexpr (kHasTiles && D::kKind != Dot::kF32 && is_in_cache<E>()) {
    if (D::kKind == Dot::kBf16) return 1;
    return F::kUnitDepth == 4 ? kFewestCopiedRows : kFewestTileRows;
  }
  return kGemmRows + 1;
}

/// Columns that are decoded at once. Tiles of pairs add each group to the output, so that any
/// number gives the same sums: as few as possible stay in L1, which takes what decoding stores.
template <class F, class E, class D>
constexpr int64_t decoded_columns() {
  if constexpr (fewest_tile_rows<F, E, D>() == 1) return F::kDepth;
  return kDepthBlock;
}

/// F as it is stored, multiplied as E is laid out (F itself, or what expand.h makes of it).
template <class F, class D, class E, class DE>
static void gemm(const GemmCall& call) noexcept {
  constexpr int64_t kColumns = decoded_columns<F, E, DE>();
  constexpr int64_t kBlocks = kColumns / F::kDepth;
  constexpr int64_t kDepthBlockBytes = kColumns / E::kDepth * E::kBlockBytes;
  constexpr int64_t kWordsPerBlock = F::kDepth / depth_per_word(D::kKind);
  constexpr bool kExpanded = !std::is_same_v<E, F>;
  // Bytes of E for one of F, as a power of two.
  constexpr int64_t kGrowth = kDepthBlockBytes / (kBlocks * F::kBlockBytes);
  constexpr int kShift = kGrowth >= 8 ? 3 : kGrowth >= 4 ? 2 : kGrowth >= 2 ? 1 : 0;
  const std::byte* trailers[2];
  const std::byte* x[kGemmRows];
  for (int p = 0; p < 2; ++p) trailers[p] = call.panels[p] + call.blocks * F::kBlockBytes;
  for (int64_t i = 0; i < call.count; ++i) {
    x[i] = call.x + (call.rows != nullptr ? call.rows[i] : i) * call.layout->row_bytes;
  }
  TileCall tile_call{};
  tile_call.rows = x;
  tile_call.layout = call.layout;
  if constexpr (requires { F::kOffset; }) tile_call.offset = F::kOffset;

  for (int64_t b = 0; b < call.blocks; b += kBlocks, ++tile_call.depth_block) {
    const int64_t rest = call.blocks - b;
    const int64_t blocks = rest < kBlocks ? rest : kBlocks;
    const std::byte* panels[2];
    const std::byte* next[2];
    for (int p = 0; p < 2; ++p) {
      panels[p] = call.panels[p] + b * F::kBlockBytes;
      next[p] = rest > blocks ? panels[p] + blocks * F::kBlockBytes : call.next[p];
    }
    tile_call.first_word = b * kWordsPerBlock;
    tile_call.blocks = blocks;
    tile_call.out = call.out;
    if constexpr (!kExpanded) {
      run_tiles<F, D, tile_rows<F, D>()>(tile_call, call.count, panels, next, 0);
    } else {
      if constexpr (D::kKind != Dot::kF32 && fewest_tile_rows<F, E, DE>() > 1) {
        constexpr bool kCopied = F::kUnitDepth == 4;
        if (call.count <= (kCopied ? kFewestCopiedRows - 1 : kDirectRows)) {
          constexpr int kRows = kCopied ? tile_rows<F, D>() : kDirectRows;
          run_tiles<F, D, kRows>(tile_call, call.count, panels, next, 0);
          continue;
        }
      }
      alignas(64) std::byte expanded[2][kDepthBlockBytes];
      tile_call.blocks = blocks * F::kDepth / E::kDepth;
#ifdef __AMX_TILE__
      if constexpr (fewest_tile_rows<F, E, DE>() <= kGemmRows) {
        if (call.count >= fewest_tile_rows<F, E, DE>()) {
          constexpr bool kSigned = GroupWeights<E>::kStep == Step::kSigned;
          // A few rows leave no time to read under their products: decoding requests the next
          // depth block, line by line.
          const int64_t bytes = blocks * F::kBlockBytes;
          const bool few = call.count <= kTileHeight;
          for (int p = 0; p < 2; ++p) {
            expand_weights<F, E, kSigned>(panels[p], next[p], blocks, expanded[p],
                                          few ? bytes : kPrefetchBytes);
            panels[p] = expanded[p];
          }
          run_group_tiles<E>(tile_call, call.count, panels, next, few ? 0 : bytes);
          continue;
        }
      }
#endif
      for (int p = 0; p < 2; ++p) {
        if constexpr (D::kKind == Dot::kF32) {
          expand_values<F>(panels[p], next[p], trailers[p], blocks, expanded[p]);
        } else {
          expand_weights<F, E>(panels[p], next[p], blocks, expanded[p]);
        }
        panels[p] = expanded[p];
      }
      run_tiles<E, DE, tile_rows<E, DE>()>(tile_call, call.count, panels, next, kShift);
    }
  }
  if constexpr (D::kKind == Dot::kU8S8 && F::kScales == Scales::kRow) {
    for (int p = 0; p < 2; ++p) {
      const F32x16 scale = load(reinterpret_cast<const float*>(trailers[p]));
      for (int64_t i = 0; i < call.count; ++i) {
        float* at = call.out + i * kGemmOutputs + p * kPanelRows;
        store(at, mul(load(at), scale));
      }
    }
  }
}

/// Which functions serve a format: its exact path, and the fast one that its kDot names.
template <class F>
constexpr GemmFn exact_gemm() {
  using E = std::conditional_t<F::kScales == Scales::kNone, F, F32Format>;
  return &gemm<F, ExactDot<F>, E, ExactDot<E>>;
}
template <class F>
constexpr GemmFn fast_gemm(Dot dot) {
  using E = typename FastLayout<F>::Type;
  if constexpr (F::kDot == Dot::kBf16) {
    if (dot == Dot::kBf16) return &gemm<F, Bf16Dot<F>, E, Bf16Dot<E>>;
  }
  if constexpr (F::kDot == Dot::kU8S8) {
    if (dot == Dot::kU8S8) return &gemm<F, IntegerDot<F>, E, IntegerDot<E>>;
  }
  return nullptr;
}

static constexpr GemmKernels kGemmKernels = {{
#define MOE_FORMAT(id, name, F, max_error) \
  {exact_gemm<F>(), fast_gemm<F>(Dot::kBf16), fast_gemm<F>(Dot::kU8S8)},
#include "moe/quant/formats.inc"
#undef MOE_FORMAT
}};

}  // namespace moe::MOE_ISA
