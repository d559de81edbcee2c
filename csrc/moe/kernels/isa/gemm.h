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

/// Exact path: the weights' values in float, activations in float.
template <class F>
struct ExactDot {
  static constexpr Dot kKind = Dot::kF32;
  static constexpr bool kScaled = false;

  template <int R, int P>
  MOE_INLINE void block(const std::byte* const (&x)[R], const PanelRange (&w)[P],
                        int64_t first_word, int64_t count, const ActivationLayout&, int64_t,
                        F32x16 (&sum)[R][P]) {
    const uint32_t* words[R];
    MOE_UNROLL
    for (int r = 0; r < R; ++r) words[r] = reinterpret_cast<const uint32_t*>(x[r]) + first_word;
    for (int64_t b = 0; b < count; ++b) {
      F32x16 value[P][F::kDepth];
      MOE_UNROLL
      for (int p = 0; p < P; ++p) {
        const std::byte* at = w[p].blocks + b * F::kBlockBytes;
        prefetch(at + kPrefetchBytes);
        F::template decode<Vec>(at, w[p].trailer, value[p]);
      }
      MOE_UNROLL
      for (int r = 0; r < R; ++r) {
        MOE_UNROLL
        for (int k = 0; k < F::kDepth; ++k) {
          const Words word = broadcast_word(words[r] + b * F::kDepth + k);
          MOE_UNROLL
          for (int p = 0; p < P; ++p) sum[r][p] = dot_f32(sum[r][p], word, value[p][k]);
        }
      }
    }
  }
};

/// bfloat16 pairs on both sides, float sums.
template <class F>
struct Bf16Dot {
  static constexpr Dot kKind = Dot::kBf16;
  static constexpr bool kScaled = false;

  template <int R, int P>
  MOE_INLINE void block(const std::byte* const (&x)[R], const PanelRange (&w)[P],
                        int64_t first_word, int64_t count, const ActivationLayout&, int64_t,
                        F32x16 (&sum)[R][P]) {
    const uint32_t* words[R];
    MOE_UNROLL
    for (int r = 0; r < R; ++r) words[r] = reinterpret_cast<const uint32_t*>(x[r]) + first_word;
    for (int64_t b = 0; b < count; ++b) {
      U8x64 value[P];
      MOE_UNROLL
      for (int p = 0; p < P; ++p) {
        const std::byte* at = w[p].blocks + b * F::kBlockBytes;
        prefetch(at + kPrefetchBytes);
        value[p] = F::template weights<Vec>(at, 0);
      }
      MOE_UNROLL
      for (int r = 0; r < R; ++r) {
        const Words word = broadcast_word(words[r] + b);
        MOE_UNROLL
        for (int p = 0; p < P; ++p) sum[r][p] = dot_bf16(sum[r][p], word, value[p]);
      }
    }
  }
};

/// Unsigned weight bytes × signed activation bytes, exact 32-bit sums over a depth block (at most
/// 512 · 255 · 127 < 2^24), then one activation scale. The weights' offset enters as the start of
/// the integer sum: Σ (q − o)·x = Σ q·x − o·Σ x.
template <class F>
struct IntegerDot {
  static constexpr Dot kKind = Dot::kU8S8;
  static constexpr bool kScaled = true;  // by the row scales in the trailer, once, at the end

  template <int R, int P>
  MOE_INLINE void block(const std::byte* const (&x)[R], const PanelRange (&w)[P],
                        int64_t first_word, int64_t count, const ActivationLayout& layout,
                        int64_t depth_block, F32x16 (&sum)[R][P]) {
    const uint32_t* words[R];
    I32x16 integer[R][P];
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      words[r] = reinterpret_cast<const uint32_t*>(x[r]) + first_word;
      const auto* sums = reinterpret_cast<const int32_t*>(x[r] + layout.block_sums_at);
      const I32x16 start = set1_i32(-F::kOffset * sums[depth_block]);
      MOE_UNROLL
      for (int p = 0; p < P; ++p) integer[r][p] = start;
    }
    for (int64_t b = 0; b < count; ++b) {
      U8x64 value[P];
      MOE_UNROLL
      for (int p = 0; p < P; ++p) {
        const std::byte* at = w[p].blocks + b * F::kBlockBytes;
        prefetch(at + kPrefetchBytes);
        value[p] = F::template weights<Vec>(at, 0);
      }
      MOE_UNROLL
      for (int r = 0; r < R; ++r) {
        const Words word = broadcast_word(words[r] + b);
        MOE_UNROLL
        for (int p = 0; p < P; ++p) integer[r][p] = dot_u8s8(integer[r][p], word, value[p]);
      }
    }
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      const auto* scales = reinterpret_cast<const float*>(x[r] + layout.scales_at);
      const F32x16 scale = set1(scales[depth_block]);
      MOE_UNROLL
      for (int p = 0; p < P; ++p) sum[r][p] = mul(to_f32(integer[r][p]), scale);
    }
  }
};

/// One depth block of R rows × P panels, added to out (or written, for the first block).
template <class F, class D, int R, int P>
[[gnu::noinline]] static void tile(const std::byte* const* rows, const PanelRange* panels,
                                   int64_t first_word, int64_t count,
                                   const ActivationLayout& layout, int64_t depth_block,
                                   float* out) noexcept {
  const std::byte* x[R];
  PanelRange w[P];
  F32x16 sum[R][P];
  MOE_UNROLL
  for (int r = 0; r < R; ++r) x[r] = rows[r];
  MOE_UNROLL
  for (int p = 0; p < P; ++p) w[p] = panels[p];
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    MOE_UNROLL
    for (int p = 0; p < P; ++p) sum[r][p] = zero_f32();
  }
  D::template block<R, P>(x, w, first_word, count, layout, depth_block, sum);
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    MOE_UNROLL
    for (int p = 0; p < P; ++p) {
      float* at = out + r * kGemmOutputs + p * kPanelRows;
      store(at, depth_block == 0 ? sum[r][p] : add(load(at), sum[r][p]));
    }
  }
}

using TileFn = void (*)(const std::byte* const*, const PanelRange*, int64_t, int64_t,
                        const ActivationLayout&, int64_t, float*) noexcept;

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

/// Rows of one pass over a depth block of the panels: their pointers stay on the stack.
inline constexpr int64_t kPassRows = 256;

template <class F, class D>
static void gemm(const GemmCall& call) noexcept {
  using Table = TilesUpTo<F, D, kTilePanels, typename CountTo<kTileRows>::Type>;
  constexpr int64_t kBlocksPerDepthBlock = kDepthBlock / F::kDepth;
  const int64_t words_per_block = F::kDepth / depth_per_word(D::kKind);
  const std::byte* x[kPassRows];

  for (int64_t pass = 0; pass < call.count; pass += kPassRows) {
    const int64_t count = call.count - pass < kPassRows ? call.count - pass : kPassRows;
    float* out = call.out + pass * kGemmOutputs;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = call.rows != nullptr ? call.rows[pass + i] : pass + i;
      x[i] = call.x + row * call.layout->row_bytes;
    }
    // Ragged counts are spread evenly: 13 rows are 7 + 6, not 12 + 1.
    const int64_t tiles = (count + kTileRows - 1) / kTileRows;
    int64_t depth_block = 0;
    for (int64_t b = 0; b < call.blocks; b += kBlocksPerDepthBlock, ++depth_block) {
      const int64_t blocks =
          call.blocks - b < kBlocksPerDepthBlock ? call.blocks - b : kBlocksPerDepthBlock;
      PanelRange panels[2];
      for (int p = 0; p < 2; ++p) {
        panels[p] = {call.panels[p] + b * F::kBlockBytes,
                     call.panels[p] + call.blocks * F::kBlockBytes};
      }
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t begin = t * count / tiles;
        const int64_t height = (t + 1) * count / tiles - begin;
        for (int p = 0; p < 2; p += kTilePanels) {
          Table::kByRows[height](x + begin, panels + p, b * words_per_block, blocks, *call.layout,
                                 depth_block, out + begin * kGemmOutputs + p * kPanelRows);
        }
      }
    }
    if constexpr (D::kScaled) {
      for (int p = 0; p < 2; ++p) {
        const auto* trailer =
            reinterpret_cast<const float*>(call.panels[p] + call.blocks * F::kBlockBytes);
        const F32x16 scale = load(trailer);
        for (int64_t i = 0; i < count; ++i) {
          float* at = out + i * kGemmOutputs + p * kPanelRows;
          store(at, mul(load(at), scale));
        }
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
