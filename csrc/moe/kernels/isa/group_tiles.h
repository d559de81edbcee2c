#pragma once
// A depth block of groups that share a scale, decoded (isa/expand.h), in AMX tiles.
//
// Definition    gemm.h's integer tiles: the same integers, scaled and added in the same order, so
//               the same bytes as the vectors give.
// Regularities  Shorter groups fill tiles in part: the cost of a step does not depend on its words.

#include "moe/kernels/isa/expand.h"
#include "moe/kernels/isa/scaled_tiles.h"

namespace moe::MOE_ISA {

/// Columns of two panels that are decoded at once: 9 KB, which stay in L1 (48 KB) beside as many
/// columns of some 64 rows, their sums and their outputs.
inline constexpr int64_t kTileColumns = 256;
/// Sums of a row's activations in them.
inline constexpr int64_t kTotals = kTileColumns / kSumGroup;

/// Rows' activations summed over `group` columns from each multiple of kSumGroup on, of the
/// `columns` from `first` on.
template <int group>
MOE_INLINE void sum_groups(const TileRows& rows, const ActivationLayout& layout, int64_t first,
                           int64_t columns, float* totals) {
  for (int64_t r = 0; r < rows.count; ++r) {
    const auto* sums =
        reinterpret_cast<const int32_t*>(rows.first + r * layout.row_bytes + layout.group_sums_at) +
        first / kSumGroup;
    for (int64_t i = 0; i < columns / kSumGroup; i += kLanes) {
      I32x16 total = load_i32(sums + i);
      MOE_UNROLL
      for (int j = 1; j < group / kSumGroup; ++j) total = add(total, load_i32(sums + i + j));
      store(totals + r * kTotals + i, to_f32(total));
    }
  }
}

/// E: units of a word, one group a block; bytes without a minimum have their sign (expand.h).
template <class E>
struct GroupWeights {
  static_assert(E::kDot == Dot::kU8S8);
  static constexpr int kGroupWords = E::kGroup / 4;
  static constexpr int kWords = kGroupWords < kTileWords ? kGroupWords : kTileWords;
  static constexpr int kGroupSteps = kGroupWords / kWords;
  static constexpr int kGroups = kScaleBlock / E::kGroup;  // of a range
  static constexpr int kLeastBatch = kGroups;
  static constexpr Step kStep = E::kMin ? Step::kUnsigned : Step::kSigned;
  static constexpr int kSumsOfGroup = E::kGroup / kSumGroup;

  const std::byte* panels[2];
  const ActivationLayout* layout;
  int64_t first_group;  // of the row
  // Where there are minima: rows' activations summed over the kSumsOfGroup parts from each one on.
  const float* totals;

  [[gnu::always_inline]] const std::byte* block(int p, int64_t group) const {
    return panels[p] + group * E::kBlockBytes;
  }
  [[gnu::always_inline]] const std::byte* words(int p, int64_t step) const {
    return block(p, step / kGroupSteps) + step % kGroupSteps * kStepBytes;
  }

  template <int kTiles, int n>
  [[gnu::always_inline]] void add(const TileRows& rows, int64_t first,
                                  const TileSums<kTiles>* sums) const {
    constexpr int kSums = sizeof(TileSums<kTiles>) / 4;
    const int64_t stride = rows.words.stride;
    const std::byte* scales_at =
        rows.first + rows.done * stride + layout->scales_at + (first_group + first) / kGroups * 4;
    MOE_UNROLL
    for (int p = 0; p < 2; ++p) {
      F32x16 scale[n], min[n];
      MOE_UNROLL
      for (int g = 0; g < n; ++g) E::template scale<Vec>(block(p, first + g), 0, scale[g], min[g]);
      const std::byte* by_at = scales_at;
      const int32_t* from = sums[0] + p * kPanelSums<kTiles> + rows.done * kPanelRows;
      float* to = rows.out + rows.done * kGemmOutputs + p * kPanelRows;
      for (int64_t r = rows.done; r < rows.count; ++r) {
        const auto* by = reinterpret_cast<const float*>(by_at);
        F32x16 value = load(to), part = zero_f32();
        MOE_UNROLL
        for (int g = 0; g < n; ++g) {
          const F32x16 q = to_f32(load_i32(from + g * kSums));
          part = kGroups == 1 ? mul(q, scale[g]) : fma(q, scale[g], part);
          if constexpr (E::kMin) {
            part = fma(set1(totals[r * kTotals + (first + g) * kSumsOfGroup]), min[g], part);
          }
          if (g % kGroups == kGroups - 1 || g == n - 1) {
            value = fma(part, set1(by[g / kGroups]), value);
            part = zero_f32();
          }
        }
        store(to, value);
        by_at += stride;
        from += kPanelRows;
        to += kGemmOutputs;
      }
    }
  }
};

/// The rows of `call`, which follow each other in memory, against two panels of F; `next` is what
/// is read from memory after the depth block.
template <class F, class E, class Call>
static void run_group_tiles(const Call& call, int64_t count, const std::byte* const (&panels)[2],
                            const std::byte* const (&next)[2]) noexcept {
  using W = GroupWeights<E>;
  constexpr bool kShort = W::kGroupSteps == 1;
  constexpr int64_t kMostRows = kShort ? kTileHeight : kTilePair;
  constexpr int64_t kBlocks = kTileColumns / F::kDepth;
  alignas(64) std::byte expanded[2][kTileColumns / E::kDepth * E::kBlockBytes];
  alignas(64) float totals[(E::kMin ? kMostRows : 1) * kTotals];
  const EvenTiles tiles(count, kMostRows);
  configure_rows<W::kWords, kShort>(tiles.height);
  if (call.first_word == 0) clear_outputs(call.out, count);
  for (int64_t b = 0; b < call.blocks; b += kBlocks) {
    const int64_t blocks = call.blocks - b < kBlocks ? call.blocks - b : kBlocks;
    const std::byte* ahead_at[2];
    for (int p = 0; p < 2; ++p) {
      const std::byte* block = panels[p] + b * F::kBlockBytes;
      ahead_at[p] = b + blocks < call.blocks ? block + blocks * F::kBlockBytes : next[p];
      expand_weights<F, E, W::kStep == Step::kSigned>(block, blocks, expanded[p]);
    }
    const int64_t steps = blocks * F::kDepth / E::kDepth * W::kGroupSteps;
    const int64_t word = call.first_word + b * F::kDepth / 4;
    const W w = {{expanded[0], expanded[1]}, call.layout, word / W::kGroupWords, totals};
    Ahead ahead = Ahead::over(ahead_at, blocks * F::kBlockBytes, tiles.number * steps);
    for (int64_t t = 0; t < tiles.number; ++t) {
      const int64_t first = tiles.begin(t);
      const std::byte* at = call.rows[first];
      const TileRows rows = {at,
                             tiles.height,
                             {at + word * 4, call.layout->row_bytes},
                             call.out + first * kGemmOutputs,
                             tiles.done(t)};
      if constexpr (E::kMin) {
        sum_groups<E::kGroup>(rows, *call.layout, word * 4, blocks * F::kDepth, totals);
      }
      if constexpr (kShort) {
        multiply_short_groups(w, steps, rows, ahead);
      } else if (tiles.height > kTileHeight) {
        multiply_groups<2>(w, steps, rows, ahead);
      } else {
        multiply_groups<1>(w, steps, rows, ahead);
      }
    }
  }
  release_tiles();
}

}  // namespace moe::MOE_ISA
