#pragma once
// The matrix product of a segment in tiles (isa/amx.h): bfloat16 pairs, and int8 with a scale per
// row.
//
// Definition    gemm.h's. bfloat16: sums run through the whole depth in steps of 32 columns, even
//               and odd columns apart within a step (TDPBF16PS). int8: the same integers as the
//               vector path, scaled and added in the same order: the same bytes.
// Regularities  A block of two panels (<= 128 KB) stays in L2 while all tiles of rows pass, and the
//               next one is requested meanwhile. Up to thirty-two rows read weights once and ask
//               for what comes a few steps later.
// Cost          A cycle for each row × a panel × 16 words, and reading the weights at least.

#include "moe/kernels/isa/amx.h"
#include "moe/kernels/isa/gemm.h"
#include "moe/kernels/isa/part_tiles.h"
#include "moe/kernels/isa/scaled_tiles.h"

namespace moe::MOE_ISA {

/// Words of a panel that all rows meet before the next are read.
inline constexpr int64_t kTileBlockWords = 1024;

/// A block of two panels in steps of sixteen words. The depth's last step may be short: it is
/// completed with zeros elsewhere, as what lies behind a panel is another's.
struct PanelTiles {
  const std::byte* at[2];
  int64_t whole, steps;
  alignas(64) std::byte rest[2][kStepBytes];
};

MOE_INLINE void find_weights(const std::byte* const (&panels)[2], int64_t words, PanelTiles& to) {
  to.whole = words / kTileWords;
  to.steps = (words + kTileWords - 1) / kTileWords;
  for (int p = 0; p < 2; ++p) {
    to.at[p] = panels[p];
    if (to.whole == to.steps) continue;
    const auto bytes = static_cast<size_t>(words % kTileWords * kLineBytes);
    std::memcpy(to.rest[p], panels[p] + to.whole * kStepBytes, bytes);
    std::memset(to.rest[p] + bytes, 0, sizeof(to.rest[p]) - bytes);
  }
}
MOE_INLINE const std::byte* step_at(const PanelTiles& w, int p, int64_t s) {
  return s < w.whole ? w.at[p] + s * kStepBytes : w.rest[p];
}

/// bfloat16: the sums stay in their tiles for a block and wait in `out` for the next.
struct Bf16Tiles {
  using Format = Bf16Format;

  template <int kTiles>
  MOE_INLINE void run(const GemmCall&, const TileRows& rows, const PanelTiles& w, int64_t word,
                      Ahead& ahead) {
    if (word == 0) {
      clear_sums<kTiles>();
    } else {
      load_outputs<kTiles>(rows.out);
    }
    for (int64_t s = 0; s < w.steps; ++s) {
      keep_awake();
      ahead.request();
      multiply_step<Step::kPairs, kTiles>(rows.words, s * kTileWords, step_at(w, 0, s),
                                          step_at(w, 1, s));
    }
    store_outputs<kTiles>(rows.out);
  }
};

/// int8: two steps are a range of the activations' scales.
struct Int8Tiles {
  using Format = Int8Format;

  struct Weights {
    static constexpr Step kStep = Step::kUnsigned;
    static constexpr int kWords = kTileWords, kGroupSteps = kScaleBlock / 4 / kTileWords;
    static constexpr int kLeastBatch = 1;
    const PanelTiles& tiles;
    const ActivationLayout* layout;
    int64_t first_range;

    [[gnu::always_inline]] const std::byte* words(int p, int64_t step) const {
      return step_at(tiles, p, step);
    }
    template <int kTiles, int n>
    [[gnu::always_inline]] void add(const TileRows& rows, int64_t first,
                                    const TileSums<kTiles>* sums) const {
      constexpr int kSums = sizeof(TileSums<kTiles>) / 4;
      const int64_t stride = rows.words.stride;
      const std::byte* totals_at = rows.first + layout->block_sums_at + (first_range + first) * 4;
      const std::byte* scales_at = rows.first + layout->scales_at + (first_range + first) * 4;
      const int32_t* from = sums[0];
      float* to = rows.out;
      for (int64_t r = 0; r < rows.count; ++r) {
        const auto* totals = reinterpret_cast<const int32_t*>(totals_at);
        const auto* scales = reinterpret_cast<const float*>(scales_at);
        F32x16 value[2] = {load(to), load(to + kPanelRows)};
        MOE_UNROLL
        for (int i = 0; i < n; ++i) {
          const I32x16 start = set1_i32(-Format::kOffset * totals[i]);
          const F32x16 scale = set1(scales[i]);
          for (int p = 0; p < 2; ++p) {
            const I32x16 sum = load_i32(from + i * kSums + p * kPanelSums<kTiles>);
            value[p] = fma(to_f32(moe::MOE_ISA::add(sum, start)), scale, value[p]);
          }
        }
        for (int p = 0; p < 2; ++p) store(to + p * kPanelRows, value[p]);
        totals_at += stride;
        scales_at += stride;
        from += kPanelRows;
        to += kGemmOutputs;
      }
    }
  };

  template <int kTiles>
  MOE_INLINE void run(const GemmCall& call, const TileRows& rows, const PanelTiles& w, int64_t word,
                      Ahead& ahead) {
    const Weights weights = {w, call.layout, word * 4 / kScaleBlock};
    multiply_groups<kTiles>(weights, w.steps, rows, ahead);
  }
};

template <class T>
static void gemm_tiles(const GemmCall& call) noexcept {
  using F = typename T::Format;
  static_assert(F::kBlockBytes == kLineBytes);  // a word of a panel
  const int64_t row_bytes = call.layout->row_bytes;
  const std::byte* first = call.x + (call.rows != nullptr ? call.rows[0] : 0) * row_bytes;
  const int64_t tiles = (call.count + kTilePair - 1) / kTilePair;
  PanelTiles w;
  int64_t configured = 0;
  if (F::kScales == Scales::kRow && call.begin == 0) clear_outputs(call.out, call.count);
  for (int64_t word = call.begin; word < call.end; word += kTileBlockWords) {
    const int64_t rest = call.end - word;
    const int64_t words = rest < kTileBlockWords ? rest : kTileBlockWords;
    const std::byte *panels[2], *next[2];
    for (int p = 0; p < 2; ++p) {
      panels[p] = call.panels[p] + word * kLineBytes;
      next[p] = rest > words ? panels[p] + words * kLineBytes : call.next[p];
    }
    find_weights(panels, words, w);
    Ahead ahead = tiles == 1 ? Ahead::along(panels, next, w.steps)
                             : Ahead::over(next, words * kLineBytes, tiles * w.steps);
    each_tile_pair(call.count, configured,
                   [&](auto tiled, int64_t row, int64_t height) MOE_INLINE_LAMBDA {
                     const std::byte* at = first + row * row_bytes;
                     const TileRows rows = {
                         at, height, {at + word * 4, row_bytes}, call.out + row * kGemmOutputs};
                     T::template run<decltype(tiled)::value>(call, rows, w, word, ahead);
                   });
  }
  release_tiles();
  if constexpr (F::kScales == Scales::kRow) scale_rows<F>(call);
}

/// gemm.h's table with tiles where they serve.
constexpr GemmKernels with_tiles(GemmKernels kernels) {
  const auto at = [&](Format format, Dot dot) -> GemmFn& {
    return kernels.run[static_cast<int>(format)][static_cast<int>(dot)];
  };
  at(Format::kBf16, Dot::kBf16) = &gemm_tiles<Bf16Tiles>;
  at(Format::kInt8, Dot::kU8S8) = &gemm_tiles<Int8Tiles>;
  at(Format::kF16, Dot::kBf16x2) = &gemm_parts<F16Format>;
  kernels.rows_together = true;
  return kernels;
}

}  // namespace moe::MOE_ISA
