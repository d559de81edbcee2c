#pragma once
// The matrix product of a segment: activation rows × two weight panels, generic over the format.
//
// Shapes        x [count, depth], panels 2 × [16, depth] → out [count, 32]
// Definition    out[t][n] = Σ_b  Σ_{k in block b}  x[t][k] · w[n][k]      b: kDepthBlock columns
//               (kFloatDepthBlock on the exact path). The inner sum runs in order of k, the blocks
//               are added in order: one row's bytes do not depend on how many rows come with it,
//               nor on the tile's height.
// Regularities  count is 1 in decode: the weights stream past once, from memory.
//               count is large in prompts: a depth block of the panels (<= 32 KB) stays in L1 while
//               all row tiles pass, decoded once for all of them (isa/expand.h).
// Cost          2 · count · 32 · depth operations, panel bytes once per call.

#include <utility>

#include "moe/kernels/isa/expand.h"
#include "moe/kernels/isa/register_tiles.h"
#ifdef MOE_PAIR_SUMS
#include "moe/kernels/isa/narrow_tiles.h"
#endif
#ifdef __AMX_TILE__
#include "moe/kernels/isa/group_tiles.h"
#include "moe/kernels/isa/pair_tiles.h"
#include "moe/kernels/isa/step_tiles.h"
#endif

namespace moe::MOE_ISA {

/// Columns of a depth block of floats: 32 KB of two panels.
inline constexpr int kFloatDepthBlock = 256;
/// Rows up to which a tile decodes the weights itself: sums and decoded words share the registers,
/// and storing words for so few rows takes longer than what spills.
inline constexpr int kDirectRows = kTileRows / 2;
/// Rows from which on integers gain by AMX, or by decoding once for all of them: the fewer, the
/// longer the groups whose sums leave the tiles, and the dearer a word is to the vectors.
template <class F>
constexpr int tiles_gain_from() {
  constexpr int kCheap = 7, kDear = kHasTiles ? 11 : 9;
  if constexpr (F::kUnitDepth == 4) return kDear;
  if constexpr (has_byte_steps<F>()) return 5;
  if constexpr (has_steps<F>()) return F::kMin || F::kGroup == 16 ? kCheap : kDear;
  return F::kGroup == 16 ? kDear : kCheap;
}

using TileFn = void (*)(const TileCall&) noexcept;

/// Tiles of `first` to `last` rows and P panels.
template <class F, class D, int P, int first, class Heights>
struct TilesOf;
template <class F, class D, int P, int first, int... i>
struct TilesOf<F, D, P, first, std::integer_sequence<int, i...>> {
  static constexpr TileFn kFns[] = {&tile<F, D, first + i, P>...};
};
template <class F, class D, int P, int first, int last>
struct Tiles : TilesOf<F, D, P, first, std::make_integer_sequence<int, last - first + 1>> {
  MOE_INLINE void run(int64_t rows, const TileCall& call) { Tiles::kFns[rows - first](call); }
};

/// One depth block of weights in the layout F against a tile of rows, which reads it from memory;
/// `next` is what is read after it. T: the Tiles of P panels that there are.
template <class T, class F, int P>
MOE_INLINE void run_tile(TileCall call, int64_t count, const std::byte* const (&panels)[2],
                         const std::byte* const (&next)[2]) {
  const int64_t last = call.blocks * F::kBlockBytes - kPrefetchBytes;
  PanelRange ranges[2];
  for (int p = 0; p < 2; ++p) {
    ranges[p] = {panels[p], panels[p] + kPrefetchBytes, next[p] - last, last, 0};
  }
  float* out = call.out;
  for (int p = 0; p < 2; p += P) {
    call.panels = ranges + p;
    call.out = out + p * kPanelRows;
    T::run(count, call);
  }
}

/// The same in tiles of at most kRows rows, one after the other; what is read next is a
/// 2^next_shift-th of these weights' bytes long.
template <class F, class D, int kRows>
MOE_INLINE void run_tiles(TileCall call, int64_t count, const std::byte* const (&panels)[2],
                          const std::byte* const (&next)[2], int next_shift) {
  // Ragged counts are spread evenly, 13 rows are 7 + 6, not 12 + 1: the taller tiles first, since
  // a processor foresees what follows from one height only.
  const int64_t tiles = (count + kRows - 1) / kRows;
  const int64_t taller = count % tiles;
  const int tiles_shift = 63 - __builtin_clzll(static_cast<unsigned long long>(tiles));
  const int shift = tiles_shift + next_shift;
  const int64_t bytes = call.blocks * F::kBlockBytes;
  float* out = call.out;
  PanelRange ranges[2];
  int64_t height = count / tiles + (taller != 0 ? 1 : 0);
  for (int64_t t = 0; t < tiles; ++t) {
    if (t == taller && t != 0) --height;
    for (int p = 0; p < 2; ++p) {
      // Tiles beyond a power of two find all requested, and ask for nothing.
      const bool shares = t >> tiles_shift == 0;
      ranges[p] = {panels[p], next[p] + ((t * bytes) >> shift), nullptr, 0, shares ? shift : 63};
    }
    for (int p = 0; p < 2; p += kTilePanels) {
      call.panels = ranges + p;
      call.out = out + p * kPanelRows;
      Tiles<F, D, kTilePanels, 1, kRows>::run(height, call);
    }
    call.rows += height;
    out += height * kGemmOutputs;
  }
}

/// A depth block of weights that tiles read as they lie in memory: one tile of rows, or several.
template <class F, class D, int kRows>
MOE_INLINE void run_direct(const TileCall& call, int64_t count, const std::byte* const (&panels)[2],
                           const std::byte* const (&next)[2]) {
  if (count <= kRows) {
    return run_tile<Tiles<F, D, kTilePanels, 1, kRows>, F, kTilePanels>(call, count, panels, next);
  }
  run_tiles<FromCache<F>, D, kRows>(call, count, panels, next, 0);
}

/// The same where tiles decode what they read: beyond kDirectRows a panel at a time.
template <class F, class D>
constexpr int decoding_rows() {
  constexpr int kMost = kHasTiles ? tiles_gain_from<F>() - 1 : kPanelTileRows;
  constexpr bool kByPanels = D::kKind == Dot::kU8S8 && !has_byte_steps<F>();
  return kByPanels && kMost > kDirectRows ? kMost : kDirectRows;
}
template <class F, class D>
MOE_INLINE void run_decoding(const TileCall& call, int64_t count,
                             const std::byte* const (&panels)[2],
                             const std::byte* const (&next)[2]) {
  constexpr int kMost = decoding_rows<F, D>();
  if constexpr (kMost > kDirectRows) {
    if (count > kDirectRows) {
      return run_tile<Tiles<F, D, 1, kDirectRows + 1, kMost>, F, 1>(call, count, panels, next);
    }
  }
  run_tile<Tiles<F, D, kTilePanels, 1, kDirectRows>, F, kTilePanels>(call, count, panels, next);
}

/// Rows from which on AMX multiplies F in the layout E, which gives the same bytes.
template <class F, class E, class D>
constexpr int fewest_tile_rows() {
  if constexpr (kHasTiles && D::kKind == Dot::kU8S8 && is_in_cache<E>()) {
    return tiles_gain_from<F>();
  }
  return kGemmRows + 1;
}

/// The rows' scales, after the depth's last part.
template <class F>
MOE_INLINE void scale_rows(const GemmCall& call) {
  if (call.end < call.blocks) return;
  for (int p = 0; p < 2; ++p) {
    const std::byte* trailer = call.panels[p] + call.blocks * F::kBlockBytes;
    const F32x16 scale = load(reinterpret_cast<const float*>(trailer));
    for (int64_t i = 0; i < call.count; ++i) {
      float* at = call.out + i * kGemmOutputs + p * kPanelRows;
      store(at, mul(load(at), scale));
    }
  }
}

/// F as it is stored, multiplied as E is laid out (F itself, or what expand.h makes of it).
template <class F, class D, class E, class DE>
static void gemm(const GemmCall& call) noexcept {
  constexpr int64_t kColumns = DE::kKind == Dot::kF32 ? kFloatDepthBlock : kDepthBlock;
  constexpr int64_t kBlocks = kColumns / F::kDepth;
  constexpr int64_t kDepthBlockBytes = kColumns / E::kDepth * E::kBlockBytes;
  constexpr int64_t kWordsPerBlock = F::kDepth / depth_per_word(D::kKind);
  constexpr bool kExpanded = !std::is_same_v<E, F>;
  // Beyond the few rows that decode weights themselves AMX takes all.
  constexpr bool kTiled = fewest_tile_rows<F, E, DE>() <= kGemmRows;
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

#ifdef __AMX_TILE__
  if constexpr (D::kKind == Dot::kU8S8 && has_steps<F>()) {
    if (call.count >= fewest_tile_rows<F, E, DE>()) return run_step_tiles<F>(call, x);
  }
#endif
  tile_call.depth_block = call.begin / kBlocks;
  for (int64_t b = call.begin; b < call.end; b += kBlocks, ++tile_call.depth_block) {
    const int64_t rest = call.end - b;
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
      run_direct<F, D, tile_rows<F, D>()>(tile_call, call.count, panels, next);
    } else {
      if constexpr (D::kKind != Dot::kF32) {
        constexpr bool kCopied = F::kUnitDepth == 4;
        if (call.count <= (kCopied ? tiles_gain_from<F>() - 1 : decoding_rows<F, D>())) {
          if constexpr (kCopied) {
            run_direct<F, D, tile_rows<F, D>()>(tile_call, call.count, panels, next);
          } else {
            run_decoding<F, D>(tile_call, call.count, panels, next);
          }
          continue;
        }
      }
#ifdef __AMX_TILE__
      if constexpr (kTiled && !has_steps<F>()) {
        run_group_tiles<F, E>(tile_call, call.count, panels, next);
      }
#endif
      if constexpr (!kTiled) {
        alignas(64) std::byte expanded[2][kDepthBlockBytes];
        tile_call.blocks = blocks * F::kDepth / E::kDepth;
        for (int p = 0; p < 2; ++p) {
          if constexpr (D::kKind == Dot::kF32) {
            expand_values<F>(panels[p], next[p], trailers[p], blocks, expanded[p]);
#ifdef MOE_PAIR_SUMS
          } else if constexpr (is_narrow<F>()) {
            expand_narrow<F>(panels[p], next[p], blocks, expanded[p]);
#endif
          } else {
            expand_weights<F, E>(panels[p], blocks, expanded[p]);
          }
          panels[p] = expanded[p];
        }
        run_tiles<E, DE, tile_rows<E, DE>()>(tile_call, call.count, panels, next, kShift);
      }
    }
  }
  if constexpr (D::kKind == Dot::kU8S8 && F::kScales == Scales::kRow) scale_rows<F>(call);
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
#ifdef __AMX_TILE__
  if constexpr (F::kDot == Dot::kBf16 && F::kScales == Scales::kGroup) {
    return dot == Dot::kBf16 ? &gemm_pairs<F> : nullptr;
  }
#endif
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
