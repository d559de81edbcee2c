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

/// How far ahead of the reads the weights are requested, in bytes of one panel.
inline constexpr int64_t kPrefetchBytes = 2048;

/// One panel's range of a depth block.
struct PanelRange {
  const std::byte* blocks;   // first block of the range
  const std::byte* trailer;  // the panel's
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

MOE_INLINE void accumulate(float* out, bool first, F32x16 sum) {
  store(out, first ? sum : add(load(out), sum));
}

/// Exact path: the weights' values in float, activations in float.
template <class F>
struct ExactDot {
  static constexpr Dot kKind = Dot::kF32;
  static constexpr bool kScaled = false;
  static constexpr int kSteps = F::kDepth;
  using Weight = F32x16;
  using Sum = F32x16;

  MOE_INLINE void weights(const std::byte* block, const std::byte* trailer, Weight* out) {
    F::template decode<Vec>(block, trailer, out);
  }
  MOE_INLINE Sum step(Sum sum, Words x, Weight w) { return dot_f32(sum, x, w); }
};

/// bfloat16 pairs on both sides, float sums.
template <class F>
struct Bf16Dot {
  static constexpr Dot kKind = Dot::kBf16;
  static constexpr bool kScaled = false;
  static constexpr int kSteps = F::kSteps;
  using Weight = U8x64;
  using Sum = F32x16;

  MOE_INLINE void weights(const std::byte* block, const std::byte*, Weight* out) {
    F::template weights<Vec>(block, out);
  }
  MOE_INLINE Sum step(Sum sum, Words x, Weight w) { return dot_bf16(sum, x, w); }
};

/// Unsigned weight bytes × signed activation bytes, exact 32-bit sums.
template <class F>
struct IntegerDot {
  static constexpr Dot kKind = Dot::kU8S8;
  static constexpr bool kScaled = true;  // by the row scales in the trailer, once, at the end
  static constexpr int kSteps = F::kSteps;
  using Weight = U8x64;
  using Sum = I32x16;

  MOE_INLINE void weights(const std::byte* block, const std::byte*, Weight* out) {
    F::template weights<Vec>(block, out);
  }
  MOE_INLINE Sum step(Sum sum, Words x, Weight w) { return dot_u8s8(sum, x, w); }
};

/// `blocks` weight blocks against R rows: sum[r][p] += x[r] · w[p].
template <class D, class F, int R, int P>
MOE_INLINE void accumulate_blocks(const uint32_t* const (&x)[R], const PanelRange (&w)[P],
                                  int64_t first_block, int64_t blocks,
                                  typename D::Sum (&sum)[R][P]) {
  for (int64_t b = first_block; b < first_block + blocks; ++b) {
    typename D::Weight value[P][D::kSteps];
    MOE_UNROLL
    for (int p = 0; p < P; ++p) {
      const std::byte* at = w[p].blocks + b * F::kBlockBytes;
      MOE_UNROLL
      for (int64_t line = 0; line < F::kBlockBytes; line += 64)
        prefetch(at + kPrefetchBytes + line);
      D::weights(at, w[p].trailer, value[p]);
    }
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      MOE_UNROLL
      for (int s = 0; s < D::kSteps; ++s) {
        const Words word = broadcast_word(x[r] + b * D::kSteps + s);
        MOE_UNROLL
        for (int p = 0; p < P; ++p) sum[r][p] = D::step(sum[r][p], word, value[p][s]);
      }
    }
  }
}

/// One depth block of R rows × P panels, added to out (or written, for the first block).
template <class F, class D, int R, int P>
[[gnu::noinline]] static void tile(const TileCall& call) noexcept {
  const uint32_t* x[R];
  PanelRange w[P];
  typename D::Sum sum[R][P];
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    x[r] = reinterpret_cast<const uint32_t*>(call.rows[r]) + call.first_word;
  }
  MOE_UNROLL
  for (int p = 0; p < P; ++p) w[p] = call.panels[p];

  if constexpr (D::kKind != Dot::kU8S8) {
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      MOE_UNROLL
      for (int p = 0; p < P; ++p) sum[r][p] = zero_f32();
    }
    accumulate_blocks<D, F, R, P>(x, w, 0, call.blocks, sum);
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      MOE_UNROLL
      for (int p = 0; p < P; ++p) {
        accumulate(call.out + r * kGemmOutputs + p * kPanelRows, call.depth_block == 0, sum[r][p]);
      }
    }
  } else {
    // A scale block at a time: at most 128 · 255 · 127 < 2^22. The weights' offset enters as the
    // start of the integer sum: Σ (q − o)·x = Σ q·x − o·Σ x.
    constexpr int64_t kBlocks = kScaleBlock / F::kDepth;
    int64_t scale_block = call.depth_block * (kDepthBlock / kScaleBlock);
    for (int64_t b = 0; b < call.blocks; b += kBlocks, ++scale_block) {
      MOE_UNROLL
      for (int r = 0; r < R; ++r) {
        const auto* sums =
            reinterpret_cast<const int32_t*>(call.rows[r] + call.layout->block_sums_at);
        const I32x16 start = set1_i32(-F::kOffset * sums[scale_block]);
        MOE_UNROLL
        for (int p = 0; p < P; ++p) sum[r][p] = start;
      }
      const int64_t rest = call.blocks - b;
      accumulate_blocks<D, F, R, P>(x, w, b, rest < kBlocks ? rest : kBlocks, sum);
      MOE_UNROLL
      for (int r = 0; r < R; ++r) {
        const auto* scales = reinterpret_cast<const float*>(call.rows[r] + call.layout->scales_at);
        const F32x16 scale = set1(scales[scale_block]);
        MOE_UNROLL
        for (int p = 0; p < P; ++p) {
          float* out = call.out + r * kGemmOutputs + p * kPanelRows;
          const F32x16 value = to_f32(sum[r][p]);
          store(out, scale_block == 0 ? mul(value, scale) : fma(value, scale, load(out)));
        }
      }
    }
  }
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
  using Table = TilesUpTo<F, D, kTilePanels, typename CountTo<kTileRows>::Type>;
  constexpr int64_t kBlocksPerDepthBlock = kDepthBlock / F::kDepth;
  constexpr int64_t kWordsPerBlock = F::kDepth / depth_per_word(D::kKind);
  const std::byte* trailers[2];
  const std::byte* x[kGemmRows];
  for (int p = 0; p < 2; ++p) trailers[p] = call.panels[p] + call.blocks * F::kBlockBytes;
  for (int64_t i = 0; i < call.count; ++i) {
    x[i] = call.x + (call.rows != nullptr ? call.rows[i] : i) * call.layout->row_bytes;
  }

  // Ragged counts are spread evenly: 13 rows are 7 + 6, not 12 + 1.
  const int64_t tiles = (call.count + kTileRows - 1) / kTileRows;
  int64_t depth_block = 0;
  for (int64_t b = 0; b < call.blocks; b += kBlocksPerDepthBlock, ++depth_block) {
    const int64_t rest = call.blocks - b;
    const int64_t blocks = rest < kBlocksPerDepthBlock ? rest : kBlocksPerDepthBlock;
    PanelRange panels[2];
    for (int p = 0; p < 2; ++p) panels[p] = {call.panels[p] + b * F::kBlockBytes, trailers[p]};
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = t * call.count / tiles;
      const int64_t height = (t + 1) * call.count / tiles - begin;
      for (int p = 0; p < 2; p += kTilePanels) {
        Table::kByRows[height]({x + begin, panels + p, b * kWordsPerBlock, blocks, depth_block,
                                call.layout, call.out + begin * kGemmOutputs + p * kPanelRows});
      }
    }
  }
  if constexpr (D::kScaled) {
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
