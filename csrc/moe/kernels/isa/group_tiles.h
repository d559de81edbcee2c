#pragma once
// A depth block of groups that share a scale, decoded (isa/expand.h), in AMX tiles.
//
// Definition    gemm.h's integer tiles: the same integers, scaled and added in the same order, so
//               the same bytes as the vectors give.
// Regularities  Shorter groups fill tiles in part: the cost of a step does not depend on its words.

#include "moe/kernels/isa/scaled_tiles.h"

namespace moe::MOE_ISA {

/// E: units of a word, one group a block; bytes without a minimum have their sign (expand.h).
template <class E>
struct GroupWeights {
  static_assert(E::kDot == Dot::kU8S8);
  static constexpr int kGroupWords = E::kGroup / 4;
  static constexpr int kWords = kGroupWords < kTileWords ? kGroupWords : kTileWords;
  static constexpr int kGroupSteps = kGroupWords / kWords;
  static constexpr int kGroups = kScaleBlock / E::kGroup;  // of a range
  static constexpr int kBatch = kGroups > 4 ? kGroups : 4;
  static constexpr Step kStep = E::kMin ? Step::kUnsigned : Step::kSigned;
  static constexpr int kSumsOfGroup = E::kGroup / kSumGroup;

  const std::byte* panels[2];
  const ActivationLayout* layout;
  int64_t first_group;  // of the row
  // Where there are minima: rows' activations summed over the kSumsOfGroup parts from each one on.
  const float (*totals)[kDepthBlock / kSumGroup];

  [[gnu::always_inline]] const std::byte* block(int p, int64_t group) const {
    return panels[p] + group * E::kBlockBytes;
  }
  [[gnu::always_inline]] const std::byte* words(int p, int64_t step) const {
    return block(p, step / kGroupSteps) + step % kGroupSteps * kStepBytes;
  }

  template <int kTiles, int n>
  [[gnu::always_inline]] void add(const TileRows& rows, int64_t first,
                                  const TileSums<kTiles>* sums) const {
    const bool start = first_group + first == 0;
    MOE_UNROLL
    for (int p = 0; p < 2; ++p) {
      F32x16 scale[n], min[n];
      MOE_UNROLL
      for (int g = 0; g < n; ++g) E::template scale<Vec>(block(p, first + g), 0, scale[g], min[g]);
      for (int64_t r = 0; r < rows.count; ++r) {
        const std::byte* row = rows.first + r * layout->row_bytes;
        const auto* by = reinterpret_cast<const float*>(row + layout->scales_at) +
                         (first_group + first) / kGroups;
        float* to = rows.out + r * kGemmOutputs + p * kPanelRows;
        const int64_t at = sums_at(r, p);
        F32x16 value = load(start ? kNothing : to), part = zero_f32();
        MOE_UNROLL
        for (int g = 0; g < n; ++g) {
          const F32x16 q = to_f32(load_i32(sums[g] + at));
          part = kGroups == 1 ? mul(q, scale[g]) : fma(q, scale[g], part);
          if constexpr (E::kMin) {
            part = fma(set1(totals[r][(first + g) * kSumsOfGroup]), min[g], part);
          }
          if (g % kGroups == kGroups - 1 || g == n - 1) {
            value = fma(part, set1(by[g / kGroups]), value);
            part = zero_f32();
          }
        }
        store(to, value);
      }
    }
  }
};

/// The rows of `call`, which follow each other in memory; `next` and the `next_bytes` of each panel
/// there are what is read from memory after the depth block.
template <class E, class Call>
static void run_group_tiles(const Call& call, int64_t count, const std::byte* const (&panels)[2],
                            const std::byte* const (&next)[2], int64_t next_bytes) noexcept {
  using W = GroupWeights<E>;
  constexpr bool kShort = W::kGroupSteps == 1;
  constexpr int64_t kMostRows = kShort ? kTileHeight : kTilePair;
  const int64_t tiles = (count + kMostRows - 1) / kMostRows;
  alignas(64) float totals[E::kMin ? kMostRows : 1][kDepthBlock / kSumGroup];
  const int64_t steps = call.blocks * W::kGroupSteps;
  W w = {{panels[0], panels[1]}, call.layout, call.first_word / W::kGroupWords, totals};
  Ahead ahead = Ahead::over(next, next_bytes, tiles * steps);
  int64_t configured = 0;
  for (int64_t first = 0; first < count; first += kMostRows) {
    const int64_t height = count - first < kMostRows ? count - first : kMostRows;
    configure_rows<W::kWords, kShort>(height, configured);
    const std::byte* at = call.rows[first];
    const TileRows rows = {at,
                           height,
                           {at + call.first_word * 4, call.layout->row_bytes},
                           call.out + first * kGemmOutputs};
    if constexpr (E::kMin) {
      sum_groups<E::kGroup>(rows, *call.layout, call.depth_block * kDepthBlock,
                            call.blocks * E::kGroup, totals);
    }
    if constexpr (kShort) {
      multiply_short_groups(w, steps, rows, ahead);
    } else if (height > kTileHeight) {
      multiply_groups<2>(w, steps, rows, ahead);
    } else {
      multiply_groups<1>(w, steps, rows, ahead);
    }
  }
  release_tiles();
}

}  // namespace moe::MOE_ISA
