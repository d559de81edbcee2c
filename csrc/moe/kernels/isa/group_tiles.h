#pragma once
// A depth block of groups that share a scale, decoded (isa/expand.h), in AMX tiles (isa/amx.h).
//
// Definition    Bytes: gemm.h's integer tiles, the same integers, scaled and added in the same
//               order, so the same bytes as the vectors give. Pairs: gemm.h's float tiles, but
//               within a group even and odd columns apart (TDPBF16PS); so tiles multiply every
//               number of rows.
// Regularities  Sums leave the tiles after each group, which is what it costs: bytes in groups of
//               32 and 16 columns gain nothing over the vectors (measured), nor do a few rows.

#include "moe/kernels/isa/amx.h"
#include "moe/kernels/table.h"

namespace moe::MOE_ISA {

inline constexpr int kTileGroup = 64;  // columns of the shortest group
inline constexpr int64_t kFewestTileRows = 8;

/// E: units of a word, one group a block. `rows` and the scales behind them are call's, `x` the
/// same rows' words; `out` is where the first of them goes. The sums of all groups leave the tiles
/// before they are scaled and added.
template <class E, int kTiles, class Call>
MOE_INLINE void add_group_tiles(const Call& call, const std::byte* const (&panels)[2],
                                const std::byte* const* rows, const RowTiles& x, int64_t count,
                                Ahead& ahead, float* out) {
  constexpr bool kIntegers = E::kDot == Dot::kU8S8;
  constexpr int kGroupWords = E::kGroup / depth_per_word(E::kDot);
  constexpr int kMostGroups = kDepthBlock / E::kGroup;
  constexpr int kRangeGroups = kIntegers ? kScaleBlock / E::kGroup : 1;
  constexpr int kSumsOfGroup = E::kGroup / kSumGroup;
  constexpr int kTileInts = kTileHeight * kPanelRows;
  alignas(64) int32_t sums[kMostGroups][kTiles * 2][kTileInts];
  const int64_t group = call.depth_block * kMostGroups;  // of the row
  const auto groups = static_cast<int>(call.blocks);
  for (int g = 0; g < groups; ++g) {
    clear_sums<kTiles>();
    const std::byte* left = panels[0] + g * E::kBlockBytes;
    const std::byte* right = panels[1] + g * E::kBlockBytes;
    MOE_UNROLL
    for (int word = 0; word < kGroupWords; word += kTileWords) {
      ahead.request();
      multiply_step<E::kDot, kTiles>(x, g * kGroupWords + word, left + word * kLineBytes,
                                     right + word * kLineBytes);
    }
    store_sums<kTiles>(sums[g], sizeof(sums[0][0]), 2 * sizeof(sums[0][0]), kLineBytes);
  }
  for (int p = 0; p < 2; ++p) {
    F32x16 scale[kMostGroups], min[kMostGroups];
    for (int g = 0; g < groups; ++g) {
      E::template scale<Vec>(panels[p] + g * E::kBlockBytes, 0, scale[g], min[g]);
    }
    for (int64_t r = 0; r < count; ++r) {
      const int64_t tile = r / kTileHeight * 2 + p, line = r % kTileHeight * kPanelRows;
      float* to = out + r * kGemmOutputs + p * kPanelRows;
      F32x16 value = group > 0 ? load(to) : zero_f32();
      if constexpr (!kIntegers) {
        for (int g = 0; g < groups; ++g) {
          const F32x16 sum = load(reinterpret_cast<const float*>(sums[g][tile]) + line);
          value = group + g == 0 ? mul(sum, scale[g]) : fma(sum, scale[g], value);
        }
      } else {
        const auto* totals =
            reinterpret_cast<const int32_t*>(rows[r] + call.layout->group_sums_at) +
            group * kSumsOfGroup;
        const auto* scales =
            reinterpret_cast<const float*>(rows[r] + call.layout->scales_at) + group / kRangeGroups;
        for (int begin = 0; begin < groups; begin += kRangeGroups) {
          F32x16 part = zero_f32();
          for (int g = begin; g < begin + kRangeGroups && g < groups; ++g) {
            int32_t total = 0;
            MOE_UNROLL
            for (int i = 0; i < kSumsOfGroup; ++i) total += totals[g * kSumsOfGroup + i];
            I32x16 sum = load_i32(sums[g][tile] + line);
            if constexpr (!E::kMin) sum = add(sum, set1_i32(-call.offset * total));
            const F32x16 q = to_f32(sum);
            part = kRangeGroups == 1 ? mul(q, scale[g]) : fma(q, scale[g], part);
            if constexpr (E::kMin) part = fma(set1(static_cast<float>(total)), min[g], part);
          }
          const F32x16 by = set1(scales[begin / kRangeGroups]);
          value = group + begin == 0 ? mul(part, by) : fma(part, by, value);
        }
      }
      store(to, value);
    }
  }
}

/// The rows of `call`, which follow each other in memory; `next` and the `next_bytes` of each panel
/// there are what is read from memory after the depth block.
template <class E, class Call>
static void run_group_tiles(const Call& call, int64_t count, const std::byte* const (&panels)[2],
                            const std::byte* const (&next)[2], int64_t next_bytes) noexcept {
  const int64_t tiles = (count + kTilePair - 1) / kTilePair;
  const int64_t steps = call.blocks * (E::kGroup / depth_per_word(E::kDot) / kTileWords);
  Ahead ahead = Ahead::over(next, next_bytes, tiles * steps);
  int64_t configured = 0;
  for (int64_t first = 0; first < count; first += kTilePair) {
    const int64_t height = count - first < kTilePair ? count - first : kTilePair;
    configure_rows(height, configured);
    const std::byte* const* rows = call.rows + first;
    const RowTiles x = {rows[0] + call.first_word * 4, call.layout->row_bytes};
    float* out = call.out + first * kGemmOutputs;
    if (height > kTileHeight) {
      add_group_tiles<E, 2>(call, panels, rows, x, height, ahead, out);
    } else {
      add_group_tiles<E, 1>(call, panels, rows, x, height, ahead, out);
    }
  }
  release_tiles();
}

}  // namespace moe::MOE_ISA
