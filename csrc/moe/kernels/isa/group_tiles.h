#pragma once
// A depth block of bytes in groups that share a scale, in AMX tiles (isa/amx.h).
//
// Definition    gemm.h's integer tiles: the same integers, scaled and added in the same order, so
//               the same bytes as the vectors give.
// Regularities  Integers leave the tiles after each group, which is what it costs: groups of 32
//               and 16 columns gain nothing over the vectors (measured), nor do a few rows.

#include "moe/kernels/isa/amx.h"
#include "moe/kernels/table.h"

namespace moe::MOE_ISA {

inline constexpr int kTileGroup = 64;  // columns of the shortest group
inline constexpr int64_t kFewestTileRows = 8;

/// Thirty-two activation rows of a depth block, `stride` bytes apart.
struct GroupRows {
  const std::byte* at;
  int64_t stride;
};

/// E: units of a word, one group a block. `rows` and the scales behind them are call's, `x` the
/// same rows' words; `out` is where the first of them goes.
template <class E, int kTiles, class Call>
MOE_INLINE void add_group_tiles(const Call& call, const std::byte* const (&panels)[2],
                                const std::byte* const* rows, const GroupRows& x, int64_t count,
                                float* out) {
  constexpr int kGroupWords = E::kGroup / 4;
  constexpr int kGroups = kScaleBlock / E::kGroup;  // in a range of the activations' scales
  constexpr int kSums = E::kGroup / kSumGroup;
  constexpr int kTileInts = kTileHeight * kPanelRows;
  constexpr int64_t kLine = 64;
  alignas(64) int32_t sums[kGroups][kTiles * 2][kTileInts];
  int64_t range = call.depth_block * (kDepthBlock / kScaleBlock);
  for (int64_t first = 0; first < call.blocks; first += kGroups, ++range) {
    const auto groups =
        static_cast<int>(call.blocks - first < kGroups ? call.blocks - first : kGroups);
    for (int g = 0; g < groups; ++g) {
      MOE_TILE_ZERO(0);
      MOE_TILE_ZERO(1);
      if constexpr (kTiles == 2) {
        MOE_TILE_ZERO(2);
        MOE_TILE_ZERO(3);
      }
      const int64_t block = first + g;
      for (int word = 0; word < kGroupWords; word += kTileWords) {
        const std::byte* left = panels[0] + block * E::kBlockBytes + word * kLine;
        const std::byte* right = panels[1] + block * E::kBlockBytes + word * kLine;
        const std::byte* above = x.at + (block * kGroupWords + word) * 4;
        MOE_TILE_LOAD(6, left, kLine);
        MOE_TILE_LOAD(4, above, x.stride);
        MOE_TILE_DOT(tdpbsud, 0, 4, 6);
        MOE_TILE_LOAD(7, right, kLine);
        MOE_TILE_DOT(tdpbsud, 1, 4, 7);
        if constexpr (kTiles == 2) {
          const std::byte* below = above + kTileHeight * x.stride;
          MOE_TILE_LOAD(5, below, x.stride);
          MOE_TILE_DOT(tdpbsud, 2, 5, 6);
          MOE_TILE_DOT(tdpbsud, 3, 5, 7);
        }
      }
      MOE_TILE_STORE(0, sums[g][0], kLine);
      MOE_TILE_STORE(1, sums[g][1], kLine);
      if constexpr (kTiles == 2) {
        MOE_TILE_STORE(2, sums[g][2], kLine);
        MOE_TILE_STORE(3, sums[g][3], kLine);
      }
    }
    for (int p = 0; p < 2; ++p) {
      F32x16 scale[kGroups], min[kGroups];
      for (int g = 0; g < groups; ++g) {
        E::template scale<Vec>(panels[p] + (first + g) * E::kBlockBytes, 0, scale[g], min[g]);
      }
      for (int64_t r = 0; r < count; ++r) {
        const auto* totals =
            reinterpret_cast<const int32_t*>(rows[r] + call.layout->group_sums_at) +
            range * (kScaleBlock / kSumGroup);
        const auto* scales = reinterpret_cast<const float*>(rows[r] + call.layout->scales_at);
        const int tile = static_cast<int>(r) / kTileHeight * 2 + p;
        const int64_t line = r % kTileHeight * kPanelRows;
        F32x16 value = zero_f32();
        for (int g = 0; g < groups; ++g) {
          int32_t total = 0;
          MOE_UNROLL
          for (int i = 0; i < kSums; ++i) total += totals[g * kSums + i];
          I32x16 sum = load_i32(sums[g][tile] + line);
          if constexpr (!E::kMin) sum = add(sum, set1_i32(-call.offset * total));
          const F32x16 q = to_f32(sum);
          value = kGroups == 1 ? mul(q, scale[g]) : fma(q, scale[g], value);
          if constexpr (E::kMin) value = fma(set1(static_cast<float>(total)), min[g], value);
        }
        float* to = out + r * kGemmOutputs + p * kPanelRows;
        const F32x16 by = set1(scales[range]);
        store(to, range == 0 ? mul(value, by) : fma(value, by, load(to)));
      }
    }
  }
}

/// The rows of `call`, which follow each other in memory if `together`.
template <class E, class Call>
static void run_group_tiles(const Call& call, int64_t count, bool together,
                            const std::byte* const (&panels)[2]) noexcept {
  constexpr int64_t kHeight = 2 * kTileHeight;
  // An odd number of lines apart, so that rows do not share sets.
  alignas(64) std::byte copy[kHeight][kDepthBlock + 64];
  int64_t configured = 0;
  for (int64_t first = 0; first < count; first += kHeight) {
    const int64_t height = count - first < kHeight ? count - first : kHeight;
    if (height != configured) {
      const int above = static_cast<int>(height < kTileHeight ? height : kTileHeight);
      const int below = static_cast<int>(height) - above;
      configure_tiles(above, below > 0 ? below : 1);
      configured = height;
    }
    const std::byte* const* rows = call.rows + first;
    GroupRows x = {rows[0] + call.first_word * 4, call.layout->row_bytes};
    if (!together) {
      for (int64_t r = 0; r < height; ++r) {
        std::memcpy(copy[r], rows[r] + call.first_word * 4,
                    static_cast<size_t>(call.blocks * E::kDepth));
      }
      x = {copy[0], sizeof(copy[0])};
    }
    float* out = call.out + first * kGemmOutputs;
    if (height > kTileHeight) {
      add_group_tiles<E, 2>(call, panels, rows, x, height, out);
    } else {
      add_group_tiles<E, 1>(call, panels, rows, x, height, out);
    }
  }
  release_tiles();
}

}  // namespace moe::MOE_ISA
