#pragma once
// The matrix product of a segment in tiles (isa/amx.h): bfloat16 pairs, and int8 with a scale per
// row.
//
// Definition    gemm.h's. bfloat16: sums run through the whole depth in steps of 32 columns, even
//               and odd columns apart within a step (TDPBF16PS). int8: the same integers as the
//               vector path, scaled and added in the same order: the same bytes.
// Regularities  A tile is sixteen rows high; one row costs what sixteen do, which in decode is
//               still little beside reading the weights.
// Cost          16 cycles for sixteen rows × a panel × 16 words.

#include "moe/kernels/isa/amx.h"
#include "moe/kernels/isa/gemm.h"

namespace moe::MOE_ISA {

inline constexpr int64_t kLineBytes = 64;  // sixteen words, or a word of each output
inline constexpr int64_t kStepBytes = kTileWords * kLineBytes;  // a panel's sixteen words
inline constexpr int kTilePair = 2;                             // tiles of rows side by side

/// Up to thirty-two activation rows of one depth block as two tiles find them: in place where they
/// follow each other in memory, else copied together.
struct RowTiles {
  const std::byte* at[kTilePair];
  int64_t stride;
  // An odd number of lines apart, so that rows do not share sets.
  alignas(64) std::byte copy[kTilePair * kTileHeight][kDepthBlock * 2 + kLineBytes];
};

MOE_INLINE void find_rows(const std::byte* const* rows, int64_t count, const GemmCall& call,
                          int64_t offset, int64_t bytes, RowTiles& to) {
  if (call.rows == nullptr || count == 1) {
    to.at[0] = rows[0] + offset;
    to.stride = call.layout->row_bytes;
  } else {
    for (int64_t r = 0; r < count; ++r) {
      std::memcpy(to.copy[r], rows[r] + offset, static_cast<size_t>(bytes));
    }
    to.at[0] = to.copy[0];
    to.stride = sizeof(to.copy[0]);
  }
  to.at[1] = to.at[0] + kTileHeight * to.stride;
}

/// A depth block of two panels in steps of sixteen words. The depth's last step may be short: it is
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

/// The first tile of rows brings the weights from memory, the others find them in L2. Requests for
/// the next depth block under all tiles, as gemm.h makes them, were slower here: they wait for the
/// sixteen line buffers that the tiles' own loads need.
MOE_INLINE void request(const PanelTiles& w, int64_t step) {
  for (int p = 0; p < 2; ++p) {
    const std::byte* at = w.at[p] + step * kStepBytes + kPrefetchBytes;
    for (int i = 0; i < kTileWords; ++i) prefetch_l2(at + i * kLineBytes);
  }
}

MOE_INLINE const std::byte* step_at(const PanelTiles& w, int p, int64_t s) {
  return s < w.whole ? w.at[p] + s * kStepBytes : w.rest[p];
}

/// Sixteen words of every row against two panels: tiles 0 and 1, with two tiles of rows 2 and 3.
#define MOE_TILE_STEP(instruction, x, w, s)              \
  {                                                      \
    const std::byte* left = step_at(w, 0, s);            \
    const std::byte* right = step_at(w, 1, s);           \
    const std::byte* above = x.at[0] + s * kLineBytes;   \
    MOE_TILE_LOAD(6, left, kLineBytes);                  \
    MOE_TILE_LOAD(4, above, x.stride);                   \
    MOE_TILE_DOT(instruction, 0, 4, 6);                  \
    MOE_TILE_LOAD(7, right, kLineBytes);                 \
    MOE_TILE_DOT(instruction, 1, 4, 7);                  \
    if constexpr (kTiles == 2) {                         \
      const std::byte* below = x.at[1] + s * kLineBytes; \
      MOE_TILE_LOAD(5, below, x.stride);                 \
      MOE_TILE_DOT(instruction, 2, 5, 6);                \
      MOE_TILE_DOT(instruction, 3, 5, 7);                \
    }                                                    \
  }

/// bfloat16: the sums stay in their tiles for a depth block and wait in `out` for the next.
struct Bf16Tiles {
  using Format = Bf16Format;
  static constexpr int64_t kBlockWords = kDepthBlock / 2;
  static constexpr int64_t kWordsPerBlock = 1;

  template <int kTiles>
  MOE_INLINE void run(const GemmCall&, const std::byte* const*, int64_t, const RowTiles& x,
                      const PanelTiles& w, bool first, int64_t depth_block, float* out) {
    constexpr int64_t kOutBytes = kGemmOutputs * 4;
    constexpr int64_t kBelow = kTileHeight * kGemmOutputs;
    if (depth_block == 0) {
      MOE_TILE_ZERO(0);
      MOE_TILE_ZERO(1);
      if constexpr (kTiles == 2) {
        MOE_TILE_ZERO(2);
        MOE_TILE_ZERO(3);
      }
    } else {
      MOE_TILE_LOAD(0, out, kOutBytes);
      MOE_TILE_LOAD(1, out + kPanelRows, kOutBytes);
      if constexpr (kTiles == 2) {
        MOE_TILE_LOAD(2, out + kBelow, kOutBytes);
        MOE_TILE_LOAD(3, out + kBelow + kPanelRows, kOutBytes);
      }
    }
    for (int64_t s = 0; s < w.steps; ++s) {
      if (first) request(w, s);
      MOE_TILE_STEP(tdpbf16ps, x, w, s)
    }
    MOE_TILE_STORE(0, out, kOutBytes);
    MOE_TILE_STORE(1, out + kPanelRows, kOutBytes);
    if constexpr (kTiles == 2) {
      MOE_TILE_STORE(2, out + kBelow, kOutBytes);
      MOE_TILE_STORE(3, out + kBelow + kPanelRows, kOutBytes);
    }
  }
};

/// int8: two steps are a range of the activations' scales; their integers leave the tiles to be
/// scaled and added.
struct Int8Tiles {
  using Format = Int8Format;
  static constexpr int64_t kBlockWords = kDepthBlock / 4;
  static constexpr int64_t kWordsPerBlock = 1;
  static constexpr int64_t kRangeSteps = kScaleBlock / 4 / kTileWords;

  template <int kTiles>
  MOE_INLINE void run(const GemmCall& call, const std::byte* const* rows, int64_t count,
                      const RowTiles& x, const PanelTiles& w, bool first, int64_t depth_block,
                      float* out) {
    alignas(64) int32_t sums[kTiles * 2][kTileHeight * kPanelRows];
    int64_t range = depth_block * (kDepthBlock / kScaleBlock);
    for (int64_t begin = 0; begin < w.steps; begin += kRangeSteps, ++range) {
      const int64_t end = begin + kRangeSteps < w.steps ? begin + kRangeSteps : w.steps;
      MOE_TILE_ZERO(0);
      MOE_TILE_ZERO(1);
      if constexpr (kTiles == 2) {
        MOE_TILE_ZERO(2);
        MOE_TILE_ZERO(3);
      }
      for (int64_t s = begin; s < end; ++s) {
        if (first) request(w, s);
        MOE_TILE_STEP(tdpbsud, x, w, s)
      }
      MOE_TILE_STORE(0, sums[0], kLineBytes);
      MOE_TILE_STORE(1, sums[1], kLineBytes);
      if constexpr (kTiles == 2) {
        MOE_TILE_STORE(2, sums[2], kLineBytes);
        MOE_TILE_STORE(3, sums[3], kLineBytes);
      }
      for (int64_t r = 0; r < count; ++r) {
        const std::byte* row = rows[r];
        const int32_t total =
            reinterpret_cast<const int32_t*>(row + call.layout->block_sums_at)[range];
        const I32x16 start = set1_i32(-Format::kOffset * total);
        const F32x16 scale =
            set1(reinterpret_cast<const float*>(row + call.layout->scales_at)[range]);
        for (int p = 0; p < 2; ++p) {
          const int32_t* sum = sums[r / kTileHeight * 2 + p] + r % kTileHeight * kPanelRows;
          float* to = out + r * kGemmOutputs + p * kPanelRows;
          const F32x16 value = to_f32(add(load_i32(sum), start));
          store(to, range == 0 ? mul(value, scale) : fma(value, scale, load(to)));
        }
      }
    }
  }
};

template <class T>
static void gemm_tiles(const GemmCall& call) noexcept {
  using F = typename T::Format;
  constexpr int64_t kHeight = kTilePair * kTileHeight;
  const std::byte* rows[kGemmRows];
  for (int64_t i = 0; i < call.count; ++i) {
    rows[i] = call.x + (call.rows != nullptr ? call.rows[i] : i) * call.layout->row_bytes;
  }
  const int64_t tiles = (call.count + kHeight - 1) / kHeight;
  const int64_t words = call.blocks * T::kWordsPerBlock;
  RowTiles x;
  PanelTiles w;
  int64_t depth_block = 0, configured = 0;
  for (int64_t first = 0; first < words; first += T::kBlockWords, ++depth_block) {
    const int64_t count = words - first < T::kBlockWords ? words - first : T::kBlockWords;
    const std::byte* panels[2];
    for (int p = 0; p < 2; ++p) panels[p] = call.panels[p] + first * kLineBytes;
    find_weights(panels, count, w);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = t * kHeight;
      const int64_t height = call.count - row < kHeight ? call.count - row : kHeight;
      find_rows(rows + row, height, call, first * 4, (count + kTileWords - 1) / kTileWords * 64, x);
      float* out = call.out + row * kGemmOutputs;
      if (height != configured) {
        const int64_t above = height < kTileHeight ? height : kTileHeight;
        configure_tiles(static_cast<int>(above),
                        static_cast<int>(height > above ? height - above : 1));
        configured = height;
      }
      if (height > kTileHeight) {
        T::template run<2>(call, rows + row, height, x, w, t == 0, depth_block, out);
      } else {
        T::template run<1>(call, rows + row, height, x, w, t == 0, depth_block, out);
      }
    }
  }
  release_tiles();
  if constexpr (F::kScales == Scales::kRow) {
    for (int p = 0; p < 2; ++p) {
      const auto* trailer = call.panels[p] + call.blocks * F::kBlockBytes;
      const F32x16 scale = load(reinterpret_cast<const float*>(trailer));
      for (int64_t i = 0; i < call.count; ++i) {
        float* at = call.out + i * kGemmOutputs + p * kPanelRows;
        store(at, mul(load(at), scale));
      }
    }
  }
}

#undef MOE_TILE_STEP

/// gemm.h's table with tiles where they serve.
constexpr GemmKernels with_tiles(GemmKernels kernels) {
  const auto at = [&](Format format, Dot dot) -> GemmFn& {
    return kernels.run[static_cast<int>(format)][static_cast<int>(dot)];
  };
  at(Format::kBf16, Dot::kBf16) = &gemm_tiles<Bf16Tiles>;
  at(Format::kInt8, Dot::kU8S8) = &gemm_tiles<Int8Tiles>;
  kernels.rows_together = true;
  return kernels;
}
static constexpr GemmKernels kTileKernels = with_tiles(kGemmKernels);

}  // namespace moe::MOE_ISA
