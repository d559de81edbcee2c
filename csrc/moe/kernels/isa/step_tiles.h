#pragma once
// The matrix product of a segment in AMX tiles where scales have two levels (Q4_K, Q2_K): the tiles
// multiply codes times steps.
//
// Definition    gemm.h's integer tiles: the same integers Σ s · q · x of a range, then d, the
// minima
//               and the activations' scale in the same order: the same bytes.
// Regularities  A step s of up to 63 is 8 a + b, so that a · q and b · q are bytes: two products of
// a
//               whole step instead of one for each group, whose sums leave the tiles once a range.

#include "moe/kernels/isa/expand.h"
#include "moe/kernels/isa/scaled_tiles.h"

namespace moe::MOE_ISA {

template <class F>
struct StepLayout {
  static constexpr int kLow = F::Scale::kLargestStep > 15 ? 3 : 4;  // bits of b
  static constexpr int kParts = F::Scale::kLargestStep >> kLow != 0 ? 2 : 1;
  static constexpr int kWords = F::kDepth / 4;
  static constexpr int kGroups = F::kDepth / F::kGroup;
  static constexpr int kRanges = F::kDepth / kScaleBlock;
  static_assert(((1 << F::Codes::kBits) - 1) * ((1 << kLow) - 1) < 256);
};

/// One panel's block: parts (b · q, a · q) of words, and as floats the groups' minima, d, and the
/// minima's unit.
template <class F>
struct StepPanel {
  using L = StepLayout<F>;
  alignas(64) std::byte words[L::kParts][L::kWords * 64];
  alignas(64) float min[L::kGroups][kPanelRows];
  alignas(64) float d[kPanelRows], least[kPanelRows];
};

template <class F>
[[gnu::noinline]] static void expand_steps(const std::byte* block, const std::byte* next,
                                           int64_t distance, StepPanel<F>& to) noexcept {
  using L = StepLayout<F>;
  constexpr int kUnitWords = F::kUnitDepth / 4;
  I32x16 step[L::kGroups];
  for (int g = 0; g < L::kGroups; ++g) {
    I32x16 min;
    F::template steps<Vec>(block, g, step[g], min);
    store(to.min[g], to_f32(min));
  }
  F32x16 d, least;
  F::template units<Vec>(block, d, least);
  store(to.d, d);
  store(to.least, least);
  MOE_UNROLL
  for (int u = 0; u < F::kDepth / F::kUnitDepth; ++u) {
    U8x64 word[kUnitWords];
    prefetch_unit<F>(block + u * F::kUnitBytes, block + F::kBlockBytes, next, distance);
    F::template weights<Vec>(block + u * F::kUnitBytes, word);
    MOE_UNROLL
    for (int i = 0; i < kUnitWords; ++i) {
      const int w = u * kUnitWords + i;
      const I32x16 s = step[w * 4 / F::kGroup];
      const I32x16 low = and_bits(s, set1_i32((1 << L::kLow) - 1));
      store_u8(to.words[0] + w * 64, scale_bytes(word[i], low));
      if constexpr (L::kParts == 2) {
        store_u8(to.words[1] + w * 64, scale_bytes(word[i], shift_right(s, L::kLow)));
      }
    }
  }
}

/// Sixteen rows against a block of two panels; `totals` as sum_groups gives them.
template <class F>
MOE_INLINE void multiply_steps(const StepPanel<F> (&panels)[2], const TileRows& rows,
                               const ActivationLayout& layout, int64_t block,
                               const float (*totals)[kDepthBlock / kSumGroup], Ahead& ahead) {
  using L = StepLayout<F>;
  constexpr int kSteps = kScaleBlock / 4 / kTileWords;
  alignas(64) TileSums<L::kParts> sums[L::kRanges];
  for (int range = 0; range < L::kRanges; ++range) {
    clear_sums<L::kParts>();
    MOE_UNROLL
    for (int i = 0; i < kSteps; ++i) {
      const int64_t word = (range * kSteps + i) * kTileWords;
      const auto part = [&](int j, int p)
                            MOE_INLINE_LAMBDA { return panels[p].words[j] + word * kLineBytes; };
      ahead.request();
      MOE_TILE_LOAD(4, rows.words.at + word * 4, rows.words.stride);
      MOE_TILE_LOAD(6, part(0, 0), kLineBytes);
      multiply_tiles<Step::kUnsigned, 0, 4, 6>();
      MOE_TILE_LOAD(7, part(0, 1), kLineBytes);
      multiply_tiles<Step::kUnsigned, 1, 4, 7>();
      if constexpr (L::kParts == 2) {
        MOE_TILE_LOAD(6, part(1, 0), kLineBytes);
        multiply_tiles<Step::kUnsigned, 2, 4, 6>();
        MOE_TILE_LOAD(7, part(1, 1), kLineBytes);
        multiply_tiles<Step::kUnsigned, 3, 4, 7>();
      }
    }
    store_sums<L::kParts>(sums[range], kTileSums * 4, 2 * kTileSums * 4, kLineBytes);
  }
  MOE_UNROLL
  for (int p = 0; p < 2; ++p) {
    const F32x16 d = load(panels[p].d), least = load(panels[p].least);
    F32x16 group_min[L::kGroups];
    MOE_UNROLL
    for (int g = 0; g < L::kGroups; ++g) group_min[g] = load(panels[p].min[g]);
    for (int64_t r = 0; r < rows.count; ++r) {
      const auto* by =
          reinterpret_cast<const float*>(rows.first + r * layout.row_bytes + layout.scales_at) +
          block * L::kRanges;
      float* to = rows.out + r * kGemmOutputs + p * kPanelRows;
      F32x16 value = load(block == 0 ? kNothing : to);
      MOE_UNROLL
      for (int range = 0; range < L::kRanges; ++range) {
        const int32_t* at = sums[range] + sums_at(r, p);
        I32x16 sum = load_i32(at);
        if constexpr (L::kParts == 2) {
          sum = add(sum, shift_left(load_i32(at + 2 * kTileSums), L::kLow));
        }
        constexpr int kGroups = L::kGroups / L::kRanges;
        F32x16 min = zero_f32();
        MOE_UNROLL
        for (int i = 0; i < kGroups; ++i) {
          const int g = range * kGroups + i;
          min = fma(set1(totals[r][g * (F::kGroup / kSumGroup)]), group_min[g], min);
        }
        const F32x16 part = fma(min, least, mul(to_f32(sum), d));
        value = fma(part, set1(by[range]), value);
      }
      store(to, value);
    }
  }
}

/// The whole depth; the rows follow each other in memory.
template <class F>
static void run_step_tiles(const GemmCall& call, const std::byte* const* x) noexcept {
  using L = StepLayout<F>;
  const ActivationLayout& layout = *call.layout;
  const int64_t tiles = (call.count + kTileHeight - 1) / kTileHeight;
  const bool few = tiles == 1;
  alignas(64) float totals[kTileHeight][kDepthBlock / kSumGroup];
  StepPanel<F> panels[2];
  int64_t configured = 0;
  for (int64_t b = 0; b < call.blocks; ++b) {
    const std::byte* next[2];
    for (int p = 0; p < 2; ++p) {
      const std::byte* block = call.panels[p] + b * F::kBlockBytes;
      next[p] = b + 1 < call.blocks ? block + F::kBlockBytes : call.next[p];
      expand_steps<F>(block, next[p], few ? F::kBlockBytes : kPrefetchBytes, panels[p]);
    }
    const int64_t steps = tiles * (L::kWords / kTileWords);
    Ahead ahead = Ahead::over(next, few ? 0 : F::kBlockBytes, steps);
    for (int64_t first = 0; first < call.count; first += kTileHeight) {
      const int64_t rest = call.count - first;
      const int64_t height = rest < kTileHeight ? rest : kTileHeight;
      configure_rows<kTileWords, true>(height, configured);
      const TileRows rows = {x[first],
                             height,
                             {x[first] + b * F::kDepth, layout.row_bytes},
                             call.out + first * kGemmOutputs};
      sum_groups<F::kGroup>(rows, layout, b * F::kDepth, F::kDepth, totals);
      multiply_steps<F>(panels, rows, layout, b, totals, ahead);
    }
  }
  release_tiles();
}

}  // namespace moe::MOE_ISA
