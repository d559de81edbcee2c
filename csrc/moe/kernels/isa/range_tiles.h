#pragma once
// Products in AMX tiles (isa/amx.h) whose sums have to be scaled every few columns: one range of
// columns after the other.
//
// Regularities  Sums leave the tiles where a scale ends. A range's are scaled and added while the
//               tiles multiply the next range, a share of the rows after each step: the two use
//               different parts of the processor.

#include "moe/kernels/isa/amx.h"
#include "moe/kernels/table.h"

namespace moe::MOE_ISA {

/// Up to thirty-two rows of a call, and where their outputs go.
struct TileRows {
  const std::byte* first;  // of the rows, their scales included
  int64_t count;
  RowTiles words;
  float* out;
};

/// A tile's sums; those of two panels and kTiles tiles of rows.
inline constexpr int kTileSums = kTileHeight * kPanelRows;
template <int kTiles>
using TileSums = int32_t[kTiles * 2 * kTileSums];

/// Where row r's sums against panel p are.
MOE_INLINE int64_t sums_at(int64_t r, int p) {
  return (r / kTileHeight * 2 + p) * kTileSums + r % kTileHeight * kPanelRows;
}

/// W, weights of two panels:
///   kStep, kWords       what a step multiplies, and how many words of the depth
///   kGroupSteps         steps that share a scale
///   kGroups             such groups in a range
///   steps               in all
///   words(p, step)      panel p's
///   add<kTiles>(rows, range, sums, begin, end)   scales the sums of rows begin … end and adds them
template <int kTiles, class W>
MOE_INLINE void multiply_ranges(const W& w, const TileRows& rows, Ahead& ahead) {
  constexpr int kSteps = W::kGroups * W::kGroupSteps;
  constexpr int64_t kBytes = kTileSums * 4;
  alignas(64) TileSums<kTiles> sums[2][W::kGroups];
  const int64_t ranges = (w.steps + kSteps - 1) / kSteps;
  for (int64_t range = 0; range <= ranges; ++range) {
    for (int s = 0; s < kSteps; ++s) {
      const int64_t step = range * kSteps + s;
      if (step < w.steps) {
        if (s % W::kGroupSteps == 0) clear_sums<kTiles>();
        ahead.request();
        multiply_step<W::kStep, kTiles>(rows.words, step * W::kWords, w.words(0, step),
                                        w.words(1, step));
        if (s % W::kGroupSteps == W::kGroupSteps - 1 || step + 1 == w.steps) {
          store_sums<kTiles>(sums[range & 1][s / W::kGroupSteps], kBytes, 2 * kBytes, kLineBytes);
        }
      }
      if (range > 0) {
        w.template add<kTiles>(rows, range - 1, sums[(range - 1) & 1], rows.count * s / kSteps,
                               rows.count * (s + 1) / kSteps);
      }
    }
  }
}

}  // namespace moe::MOE_ISA
