#pragma once
// The matrix product of a segment in AMX tiles where groups of bfloat16 pairs share a scale (fp8).
//
// Definition    out[t][n] = Σ_g scale[n][g] · Σ_{k in g} x[t][k] · w[n][k]; within a step of 32
//               columns even and odd ones apart (TDPBF16PS). Tiles multiply every number of rows.
// Regularities  Few rows: a step's words are decoded into L1 behind each step that the tiles
//               multiply of the group before, as the processor does not look far enough ahead to
//               find them itself. What is loaded into tiles was stored long ago, and what leaves
//               them was multiplied long ago.
// Cost          Few rows: decoding, eight vector instructions for 64 weights of fp8.

#include "moe/kernels/isa/expand.h"
#include "moe/kernels/isa/scaled_tiles.h"

namespace moe::MOE_ISA {

/// A group of two panels, decoded.
template <class F>
struct PairGroup {
  static constexpr int kSteps = F::kGroup / 2 / kTileWords;
  alignas(64) std::byte words[2][kSteps * kStepBytes];
};

/// Steps [first, end) of one panel's block as pairs; `ahead` is requested meanwhile, a line for
/// each one read, and the scales' with the last.
template <class F>
[[gnu::noinline]] static void expand_pairs(const std::byte* block, const std::byte* ahead,
                                           int first, int end, std::byte* words) noexcept {
  constexpr int kWords = F::kUnitDepth / 2;
  constexpr int64_t kBytes = kTileWords / kWords * F::kUnitBytes;
  static_assert(F::kUnitBytes == kLineBytes && PairGroup<F>::kSteps * kBytes == F::kScalesAt);
  std::byte* to = words + first * kStepBytes;
  for (int64_t at = first * kBytes; at < end * kBytes; at += kLineBytes) {
    U8x64 word[kWords];
    prefetch(ahead + at);
    F::template weights<Vec>(block + at, word);
    MOE_UNROLL
    for (int i = 0; i < kWords; ++i, to += kLineBytes) store_u8(to, word[i]);
  }
  if (end == PairGroup<F>::kSteps) prefetch(ahead + F::kScalesAt);
}

/// After step s `meanwhile(s)`.
template <class F, int kTiles, class Meanwhile>
MOE_INLINE void multiply_pairs(const PairGroup<F>& group, const RowTiles& x, Ahead& ahead,
                               const Meanwhile& meanwhile) {
  clear_sums<kTiles>();
  MOE_UNROLL
  for (int s = 0; s < PairGroup<F>::kSteps; ++s) {
    ahead.request();
    multiply_step<Step::kPairs, kTiles>(x, s * kTileWords, group.words[0] + s * kStepBytes,
                                        group.words[1] + s * kStepBytes);
    meanwhile(s);
  }
}

/// Sums that have left the tiles, and what is to be done with them. Loads wait for the stores of
/// tiles just before them: sums are added when the next ones have been stored.
template <int kTiles>
struct PairSums {
  TileSums<kTiles> sums;
  alignas(64) float scale[2][kPanelRows];
  float* out;
  int64_t begin, count;  // which rows
};
template <int kTiles>
MOE_INLINE void add_pairs(const PairSums<kTiles>& from) {
  const int64_t count = from.count;
  const auto* sum = reinterpret_cast<const float*>(from.sums) + from.begin * kPanelRows;
  float* out = from.out + from.begin * kGemmOutputs;
  F32x16 scale[2];
  for (int p = 0; p < 2; ++p) scale[p] = load(from.scale[p]);
  for (int64_t r = from.begin; r < count; ++r, sum += kPanelRows, out += kGemmOutputs) {
    MOE_UNROLL
    for (int p = 0; p < 2; ++p) {
      float* to = out + p * kPanelRows;
      store(to, fma(load(sum + p * kPanelSums<kTiles>), scale[p], load(to)));
    }
  }
}

template <class F, int kTiles>
static void run_pairs(const GemmCall& call, const EvenTiles& tiles) noexcept {
  const int64_t row_bytes = call.layout->row_bytes;
  const std::byte* first = call.x + (call.rows != nullptr ? call.rows[0] : 0) * row_bytes;
  // More rows hide waiting; the second buffers would only take room in L1 there.
  const bool few = tiles.number == 1;
  const int64_t buffers = few ? 2 : 1;
  PairGroup<F> groups[2];
  // Block b of panel p, or what is read after the part.
  const auto block = [&](int64_t b, int p) MOE_INLINE_LAMBDA {
    return b < call.end ? call.panels[p] + b * F::kBlockBytes
                        : call.next[p] + (b - call.end) * F::kBlockBytes;
  };
  const auto expand = [&](int64_t b, int step, int end) MOE_INLINE_LAMBDA {
    for (int p = 0; p < 2; ++p) {
      const std::byte* ahead = few ? block(b + 1, p) : block(b, p) + kPrefetchBytes;
      expand_pairs<F>(block(b, p), ahead, step, end, groups[b % buffers].words[p]);
    }
  };
  alignas(64) PairSums<kTiles> sums[2];
  int64_t turn = 0;
  configure_rows(tiles.height);
  if (call.begin == 0) clear_outputs(call.out, call.count);
  if (few) expand(call.begin, 0, PairGroup<F>::kSteps);
  for (int64_t b = call.begin; b < call.end; ++b) {
    const std::byte* next[2] = {block(b + 1, 0), block(b + 1, 1)};
    Ahead ahead = Ahead::over(next, few ? 0 : F::kBlockBytes, tiles.number * PairGroup<F>::kSteps);
    if (!few) expand(b, 0, PairGroup<F>::kSteps);
    for (int64_t t = 0; t < tiles.number; ++t, ++turn) {
      const int64_t row = tiles.begin(t);
      const RowTiles x = {first + row * row_bytes + b * F::kDepth * 2, row_bytes};
      PairSums<kTiles>& to = sums[turn % buffers];
      to.out = call.out + row * kGemmOutputs;
      to.begin = tiles.done(t);
      to.count = tiles.height;
      multiply_pairs<F, kTiles>(groups[b % buffers], x, ahead, [&](int step) MOE_INLINE_LAMBDA {
        if (few && b + 1 < call.end) expand(b + 1, step, step + 1);
      });
      store_sums<kTiles>(to.sums);
      for (int p = 0; p < 2; ++p) {
        F32x16 scale, min;
        F::template scale<Vec>(block(b, p), 0, scale, min);
        store(to.scale[p], scale);
      }
      if (!few) add_pairs<kTiles>(to);
      if (few && turn > 0) add_pairs<kTiles>(sums[(turn - 1) % 2]);
    }
  }
  if (few) add_pairs<kTiles>(sums[(turn - 1) % 2]);
  release_tiles();
}

template <class F>
static void gemm_pairs(const GemmCall& call) noexcept {
  static_assert(F::kGroup == F::kDepth);
  const EvenTiles tiles(call.count, kTilePair);
  if (tiles.height > kTileHeight) {
    run_pairs<F, 2>(call, tiles);
  } else {
    run_pairs<F, 1>(call, tiles);
  }
}

}  // namespace moe::MOE_ISA
