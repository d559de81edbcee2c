#pragma once
// The matrix product of a segment: activation rows × two weight panels, generic over the format.
//
// Shapes        x [count, depth], panels 2 × [16, depth] → out [count, 32]
// Definition    out[t][n] = Σ_b  Σ_{k in block b}  x[t][k] · w[n][k]      b: kDepthBlock columns
//               The inner sum runs in order of k, the blocks are added in order: one row's bytes do
//               not depend on how many rows come with it, nor on the tile's height.
// Regularities  count is 1 in decode: the weights stream past once, from memory.
//               count is large in prompts: a depth block of the panels (<= 64 KB) stays in L2 while
//               all row tiles pass.
// Cost          2 · count · 32 · depth operations, panel bytes once per call.

#include "moe/kernels/table.h"
#include "moe/quant/formats.h"
#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

/// How far ahead of a single tile's reads the weights are requested, in bytes of one panel.
inline constexpr int64_t kPrefetchBytes = 2048;

/// One panel's range of a depth block. While byte i of it is read, `ahead` + (i >> shift) is
/// requested: with several tiles of rows, each requests its share of the next depth block, so that
/// reading goes on under the multiplications.
struct PanelRange {
  const std::byte* blocks;   // first block of the range
  const std::byte* trailer;  // the panel's
  const std::byte* ahead;
  int shift;
};

/// One call of a tile: R rows × P panels over one depth block.
struct TileCall {
  const std::byte* const* rows;
  const PanelRange* panels;
  int64_t first_word;   // of the depth block in an activation row
  int64_t blocks;       // weight blocks in it
  int64_t depth_block;  // which one
  const ActivationLayout* layout;
  float* out;
};

/// Exact path: the weights' values in float, activations in float.
template <class F>
struct ExactDot {
  static constexpr Dot kKind = Dot::kF32;
  static constexpr Scales kScales = Scales::kNone;
  using Weight = F32x16;
  using Sum = F32x16;
  MOE_INLINE void unit(const std::byte* block, const std::byte* trailer, int u, Weight* out) {
    F::template decode<Vec>(block, trailer, u, out);
  }
  MOE_INLINE Sum step(Sum sum, Words x, Weight w) { return dot_f32(sum, x, w); }
};

/// Operands as the format packs them: words of weights against words of activations.
template <class F>
struct PackedDot {
  static constexpr Dot kKind = F::kDot;
  static constexpr Scales kScales = F::kScales;
  using Weight = U8x64;
  MOE_INLINE void unit(const std::byte* block, const std::byte*, int u, Weight* out) {
    F::template weights<Vec>(block, u, out);
  }
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

/// Blocks [begin, end) against R rows: sum[r][p] += x[r] · w[p].
template <class F, class D, int R, int P>
MOE_INLINE void accumulate(const uint32_t* const (&x)[R], const PanelRange (&w)[P], int64_t begin,
                           int64_t end, typename D::Sum (&sum)[R][P]) {
  constexpr int kUnits = F::kDepth / F::kUnitDepth;
  constexpr int kUnitBytes = static_cast<int>(F::kBlockBytes / kUnits);
  constexpr int kWords = F::kUnitDepth / depth_per_word(D::kKind);
  const auto unit = [&](int64_t b, int u) MOE_INLINE_LAMBDA {
    typename D::Weight value[P][kWords];
    MOE_UNROLL
    for (int p = 0; p < P; ++p) {
      const int64_t at = b * F::kBlockBytes + u * kUnitBytes;
      const std::byte* ahead = w[p].ahead + (at >> w[p].shift);
      // Many rows read the block that is in L1 while the next one arrives.
      if constexpr (R < kTileRows / 2) {
        prefetch(ahead);
      } else {
        prefetch_l2(ahead);
      }
      D::unit(w[p].blocks + b * F::kBlockBytes, w[p].trailer, u, value[p]);
    }
    MOE_UNROLL
    for (int i = 0; i < kWords; ++i) {
      MOE_UNROLL
      for (int r = 0; r < R; ++r) {
        const Words word = broadcast_word(x[r] + (b * kUnits + u) * kWords + i);
        MOE_UNROLL
        for (int p = 0; p < P; ++p) sum[r][p] = D::step(sum[r][p], word, value[p][i]);
      }
    }
  };
  int64_t b = begin;
  if constexpr (kUnits * kWords == 1) {
    // Short blocks: the rows' pointers, more than there are registers, are reloaded once for four.
    for (; b + 4 <= end; b += 4) {
      MOE_UNROLL
      for (int i = 0; i < 4; ++i) unit(b + i, 0);
    }
  }
  for (; b < end; ++b) {
    for (int u = 0; u < kUnits; ++u) unit(b, u);
  }
}

/// A depth block in floats: added to out, or written if it is the first.
template <class F, class D, int R, int P>
MOE_INLINE void float_tile(const TileCall& call, const uint32_t* const (&x)[R],
                           const PanelRange (&w)[P]) {
  F32x16 sum[R][P];
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    MOE_UNROLL
    for (int p = 0; p < P; ++p) sum[r][p] = zero_f32();
  }
  accumulate<F, D, R, P>(x, w, 0, call.blocks, sum);
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    MOE_UNROLL
    for (int p = 0; p < P; ++p) {
      float* out = call.out + r * kGemmOutputs + p * kPanelRows;
      store(out, call.depth_block == 0 ? sum[r][p] : add(load(out), sum[r][p]));
    }
  }
}

/// Integers from a run of blocks that share the weights' scale: at most 128 · 255 · 127 < 2^22. The
/// weights' offset enters as the start of the sum, Σ (q − o)·x = Σ q·x − o·Σ x; Σ x is found in
/// kSums parts from `first_sum` on.
template <class F, int kSums, int R, int P>
MOE_INLINE void integer_run(const TileCall& call, const uint32_t* const (&x)[R],
                            const PanelRange (&w)[P], int64_t sums_at, int64_t first_sum,
                            int64_t begin, int64_t end, I32x16 (&sum)[R][P]) {
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    const auto* sums = reinterpret_cast<const int32_t*>(call.rows[r] + sums_at) + first_sum;
    int32_t total = 0;
    MOE_UNROLL
    for (int i = 0; i < kSums; ++i) total += sums[i];
    const I32x16 start = set1_i32(-F::kOffset * total);
    MOE_UNROLL
    for (int p = 0; p < P; ++p) sum[r][p] = start;
  }
  accumulate<F, IntegerDot<F>, R, P>(x, w, begin, end, sum);
}

/// A depth block in integers, one range of the activations' scales after the other.
template <class F, int R, int P>
MOE_INLINE void integer_tile(const TileCall& call, const uint32_t* const (&x)[R],
                             const PanelRange (&w)[P]) {
  constexpr int64_t kBlocks = kScaleBlock / F::kDepth;
  const ActivationLayout& layout = *call.layout;
  int64_t scale_block = call.depth_block * (kDepthBlock / kScaleBlock);
  for (int64_t b = 0; b < call.blocks; b += kBlocks, ++scale_block) {
    const int64_t end = call.blocks - b < kBlocks ? call.blocks : b + kBlocks;
    F32x16 value[R][P];
    if constexpr (F::kScales == Scales::kRow || F::kDepth == kScaleBlock) {
      I32x16 sum[R][P];
      integer_run<F, 1, R, P>(call, x, w, layout.block_sums_at, scale_block, b, end, sum);
      MOE_UNROLL
      for (int p = 0; p < P; ++p) {
        F32x16 scale;
        if constexpr (F::kScales == Scales::kBlock) {
          scale = F::template scale<Vec>(w[p].blocks + b * F::kBlockBytes);
        }
        MOE_UNROLL
        for (int r = 0; r < R; ++r) {
          value[r][p] = to_f32(sum[r][p]);
          if constexpr (F::kScales == Scales::kBlock) value[r][p] = mul(value[r][p], scale);
        }
      }
    } else {
      MOE_UNROLL
      for (int r = 0; r < R; ++r) {
        MOE_UNROLL
        for (int p = 0; p < P; ++p) value[r][p] = zero_f32();
      }
      for (int64_t g = b; g < end; ++g) {
        I32x16 sum[R][P];
        constexpr int kSums = F::kDepth / kSumGroup;
        const int64_t first_sum = call.depth_block * (kDepthBlock / kSumGroup) + g * kSums;
        integer_run<F, kSums, R, P>(call, x, w, layout.group_sums_at, first_sum, g, g + 1, sum);
        MOE_UNROLL
        for (int p = 0; p < P; ++p) {
          const F32x16 scale = F::template scale<Vec>(w[p].blocks + g * F::kBlockBytes);
          MOE_UNROLL
          for (int r = 0; r < R; ++r) value[r][p] = fma(to_f32(sum[r][p]), scale, value[r][p]);
        }
      }
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
  PanelRange w[P];
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    x[r] = reinterpret_cast<const uint32_t*>(call.rows[r]) + call.first_word;
  }
  MOE_UNROLL
  for (int p = 0; p < P; ++p) w[p] = call.panels[p];
  if constexpr (D::kKind == Dot::kU8S8) {
    integer_tile<F, R, P>(call, x, w);
  } else {
    float_tile<F, D, R, P>(call, x, w);
  }
}

/// Rows of a register tile: half as many where floats and integers are summed side by side.
template <class F, class D>
constexpr int tile_rows() {
  return D::kScales == Scales::kBlock && F::kDepth < kScaleBlock ? (kTileRows + 1) / 2 : kTileRows;
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

template <class F, class D>
static void gemm(const GemmCall& call) noexcept {
  constexpr int kRows = tile_rows<F, D>();
  using Table = TilesUpTo<F, D, kTilePanels, typename CountTo<kRows>::Type>;
  constexpr int64_t kBlocksPerDepthBlock = kDepthBlock / F::kDepth;
  constexpr int64_t kWordsPerBlock = F::kDepth / depth_per_word(D::kKind);
  const std::byte* trailers[2];
  const std::byte* x[kGemmRows];
  for (int p = 0; p < 2; ++p) trailers[p] = call.panels[p] + call.blocks * F::kBlockBytes;
  for (int64_t i = 0; i < call.count; ++i) {
    x[i] = call.x + (call.rows != nullptr ? call.rows[i] : i) * call.layout->row_bytes;
  }

  // Ragged counts are spread evenly: 13 rows are 7 + 6, not 12 + 1.
  const int64_t tiles = (call.count + kRows - 1) / kRows;
  const int shift = tiles > 1 ? 63 - __builtin_clzll(static_cast<unsigned long long>(tiles)) : 0;
  int64_t depth_block = 0;
  for (int64_t b = 0; b < call.blocks; b += kBlocksPerDepthBlock, ++depth_block) {
    const int64_t rest = call.blocks - b;
    const int64_t blocks = rest < kBlocksPerDepthBlock ? rest : kBlocksPerDepthBlock;
    PanelRange panels[2];
    for (int p = 0; p < 2; ++p)
      panels[p] = {call.panels[p] + b * F::kBlockBytes, trailers[p], nullptr, shift};
    const int64_t bytes = blocks * F::kBlockBytes;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = t * call.count / tiles;
      const int64_t height = (t + 1) * call.count / tiles - begin;
      for (int p = 0; p < 2; ++p) {
        const std::byte* next = rest > blocks ? panels[p].blocks + bytes : call.next[p];
        panels[p].ahead = tiles == 1   ? panels[p].blocks + kPrefetchBytes
                          : t >> shift ? panels[p].blocks  // all is requested
                                       : next + ((t * bytes) >> shift);
      }
      for (int p = 0; p < 2; p += kTilePanels) {
        Table::kByRows[height]({x + begin, panels + p, b * kWordsPerBlock, blocks, depth_block,
                                call.layout, call.out + begin * kGemmOutputs + p * kPanelRows});
      }
    }
  }
  if constexpr (D::kScales == Scales::kRow) {
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
constexpr GemmFn fast_gemm(Dot dot) {
  if constexpr (F::kDot == Dot::kBf16) {
    if (dot == Dot::kBf16) return &gemm<F, Bf16Dot<F>>;
  }
  if constexpr (F::kDot == Dot::kU8S8) {
    if (dot == Dot::kU8S8) return &gemm<F, IntegerDot<F>>;
  }
  return nullptr;
}

static constexpr GemmKernels kGemmKernels = {{
#define MOE_FORMAT(id, name, F, max_error) \
  {&gemm<F, ExactDot<F>>, fast_gemm<F>(Dot::kBf16), fast_gemm<F>(Dot::kU8S8)},
#include "moe/quant/formats.inc"
#undef MOE_FORMAT
}};

}  // namespace moe::MOE_ISA
