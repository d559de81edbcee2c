#pragma once
// Products in AMX tiles (isa/amx.h) whose sums have to be scaled every few columns.
//
// Regularities  Sums leave the tiles where a scale ends. Several groups' are collected, as many as
//               stay in L1 beside weights and activations, and scaled and added row by row; the
//               processor goes on with the next products meanwhile.

#include <type_traits>

#include "moe/kernels/isa/amx.h"
#include "moe/kernels/table.h"

namespace moe::MOE_ISA {

/// Up to thirty-two rows of a call, and where their outputs go.
struct TileRows {
  const std::byte* first;  // of the rows, their scales included
  int64_t count;
  RowTiles words;
  float* out;
  int64_t done = 0;  // so many of the first rows have been added already
};

/// A call's rows in tiles of one height: a new shape takes some 200 cycles. Where they do not come
/// out even the last tile begins earlier, with rows that are done.
struct EvenTiles {
  int64_t count, number, height;

  [[gnu::always_inline]] inline EvenTiles(int64_t rows, int64_t most)
      : count(rows), number((rows + most - 1) / most), height((rows + number - 1) / number) {}
  [[gnu::always_inline]] int64_t begin(int64_t tile) const {
    return tile + 1 < number ? tile * height : count - height;
  }
  [[gnu::always_inline]] int64_t done(int64_t tile) const { return tile * height - begin(tile); }
};

/// The sums of kTiles tiles of rows and two panels: [panel][row][16]. Rows of both panels side by
/// side, as outputs lie, made the products of steps (isa/step_tiles.h) 7 % slower.
template <int kTiles>
using TileSums = int32_t[2 * kTiles * kTileHeight * kPanelRows];
template <int kTiles>
inline constexpr int kPanelSums = kTiles * kTileHeight * kPanelRows;

template <int kTiles>
MOE_INLINE void store_sums(TileSums<kTiles>& to) {
  constexpr int64_t kPanel = kPanelSums<kTiles> * 4;
  store_pair<0>(to, kPanel, kLineBytes);
  if constexpr (kTiles == 2) store_pair<2>(to + kPanelSums<1>, kPanel, kLineBytes);
}

/// Calls f with n, 1 to kMost, as a compile-time constant.
template <int kMost, class F>
MOE_INLINE void with_count(int n, F f) {
  if (kMost == 1 || n == kMost) {
    f(std::integral_constant<int, kMost>{});
  } else if constexpr (kMost > 1) {
    with_count<kMost - 1>(n, f);
  }
}

/// What the outputs are before the first group: adding to it changes no bit.
MOE_INLINE void clear_outputs(float* out, int64_t rows) {
  for (int64_t i = 0; i < rows * kGemmOutputs; i += kPanelRows) store(out + i, set1(-0.0f));
}

/// Groups whose sums are collected, 8 KB of them: more leave no room in L1 for the rest (16 KB made
/// 64 rows against groups of 128 a quarter slower).
template <class W, int kTiles>
inline constexpr int kBatch = W::kLeastBatch > 4 / kTiles ? W::kLeastBatch : 4 / kTiles;

/// `steps` of W, weights of two panels:
///   kStep, kWords       what a step multiplies, and how many words of the depth
///   kGroupSteps         steps that share a scale
///   kLeastBatch         groups whose sums are added together
///   words(p, step)      panel p's
///   add<kTiles, n>(rows, group, sums)   scales and adds those of n groups from the given one on
template <int kTiles, class W>
MOE_INLINE void multiply_groups(const W& w, int64_t steps, const TileRows& rows, Ahead& ahead) {
  constexpr int kMost = kBatch<W, kTiles>;
  alignas(64) TileSums<kTiles> sums[kMost];
  for (int64_t step = 0, group = 0; step < steps; group += kMost) {
    int n = 0;
    for (; n < kMost && step < steps; ++n) {
      clear_sums<kTiles>();
      for (int i = 0; i < W::kGroupSteps && step < steps; ++i, ++step) {
        ahead.request();
        multiply_step<W::kStep, kTiles>(rows.words, step * W::kWords, w.words(0, step),
                                        w.words(1, step));
      }
      store_sums<kTiles>(sums[n]);
    }
    with_count<kMost>(n, [&](auto count) MOE_INLINE_LAMBDA {
      w.template add<kTiles, decltype(count)::value>(rows, group, sums);
    });
  }
}

/// The same for groups of one step and at most sixteen rows. A store waits for the products issued
/// just before it: it follows those of the next group.
template <class W>
MOE_INLINE void multiply_short_groups(const W& w, int64_t steps, const TileRows& rows,
                                      Ahead& ahead) {
  static_assert(W::kGroupSteps == 1);
  constexpr int kMost = kBatch<W, 1>;
  alignas(64) TileSums<1> sums[kMost];
  for (int64_t step = 0; step < steps; step += kMost) {
    const int64_t rest = steps - step;
    with_count<kMost>(
        static_cast<int>(rest < kMost ? rest : kMost), [&](auto count) MOE_INLINE_LAMBDA {
          constexpr int kCount = decltype(count)::value;
          const auto multiply = [&](auto turn, int i) MOE_INLINE_LAMBDA {
            ahead.request();
            multiply_in_turn<W::kStep, decltype(turn)::value>(
                rows.words, (step + i) * W::kWords, w.words(0, step + i), w.words(1, step + i));
          };
          const auto put = [&](auto turn, int i) MOE_INLINE_LAMBDA {
            store_pair<2 * decltype(turn)::value>(sums[i], kPanelSums<1> * 4, kLineBytes);
          };
          constexpr std::integral_constant<int, 0> kEven;
          constexpr std::integral_constant<int, 1> kOdd;
          MOE_UNROLL
          for (int i = 0; i < kCount; i += 2) {
            multiply(kEven, i);
            if (i > 0) put(kOdd, i - 1);
            if (i + 1 < kCount) multiply(kOdd, i + 1);
            put(kEven, i);
          }
          if constexpr (kCount % 2 == 0) put(kOdd, kCount - 1);
          w.template add<1, kCount>(rows, step, sums);
        });
  }
}

}  // namespace moe::MOE_ISA
