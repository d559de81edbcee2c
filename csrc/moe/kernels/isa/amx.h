#pragma once
// AMX: eight tile registers of sixteen rows × 64 bytes, and the product of two of them.
//
// Tiles 0 … 3 are sums [16 rows][16 outputs], 4 and 5 activations [16 rows][16 words], 6 and 7
// weights [16 words][16 outputs]: a panel's words lie in memory as the product wants them. Written
// as instructions, because the intrinsics of g++ 12 do not say that they read memory.

#include <type_traits>

#include "moe/quant/format.h"
#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

inline constexpr int kTileHeight = 16;
inline constexpr int kTileWords = 16;

/// The tiles' shapes: `above` rows of activations and sums in the first tile, `below` in the
/// second, and `words` of the depth. What the tiles held is lost.
MOE_INLINE void configure_tiles(int above, int below, int words) {
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  const auto first = static_cast<uint8_t>(above), second = static_cast<uint8_t>(below);
  const auto deep = static_cast<uint8_t>(words);
  const auto wide = static_cast<uint16_t>(words * 4);
  const Config config = {1,
                         0,
                         {},
                         {64, 64, 64, 64, wide, wide, 64, 64},
                         {first, first, second, second, first, second, deep, deep}};
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}
/// Without this a thread switch saves 8 KB.
MOE_INLINE void release_tiles() { __asm__ volatile("tilerelease" : : : "memory"); }

/// One addition of floats. Where none has run for half a microsecond, the sums' way out of their
/// tiles takes 300 ns longer (measured on Granite Rapids: products alone let the adders fall
/// asleep). Loops of more than a hundred products call this in between.
MOE_INLINE void keep_awake() {
  float zero;
  __asm__ volatile("vxorps %0, %0, %0\n\tvaddps %0, %0, %0" : "=x"(zero));
}

#define MOE_TILE_LOAD(tile, from, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(stride) : "memory")
#define MOE_TILE_STORE(tile, to, stride) \
  __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(stride) : "memory")
#define MOE_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
#define MOE_TILE_DOT(instruction, sum, x, w) \
  __asm__ volatile(#instruction " %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(x), "i"(w))

inline constexpr int64_t kLineBytes = 64;  // sixteen words, or a word of each output
inline constexpr int64_t kStepBytes = kTileWords * kLineBytes;  // a panel's sixteen words
inline constexpr int64_t kTilePair = 2 * kTileHeight;           // rows of two tiles

/// Up to thirty-two activation rows from one word on, `stride` bytes apart.
struct RowTiles {
  const std::byte* at;
  int64_t stride;
};

/// Shapes the tiles for `height` rows and steps of kWords. Rows beyond sixteen go to the second
/// tile; or both have the same number, to be taken in turn.
template <int kWords = kTileWords, bool kInTurn = false>
MOE_INLINE void configure_rows(int64_t height) {
  const int above = static_cast<int>(height < kTileHeight ? height : kTileHeight);
  const int below = kInTurn ? above : static_cast<int>(height) - above;
  configure_tiles(above, below > 0 ? below : 1, kWords);
}

/// Rows in tiles of at most thirty-two: f(tiles, row, height), tiles 1 or 2 as a compile-time
/// constant. `configured` is the height that the tiles have, 0 at first.
template <class F>
MOE_INLINE void each_tile_pair(int64_t count, int64_t& configured, const F& f) {
  for (int64_t row = 0; row < count; row += kTilePair) {
    const int64_t height = count - row < kTilePair ? count - row : kTilePair;
    if (height != configured) configure_rows(height);
    configured = height;
    if (height > kTileHeight) {
      f(std::integral_constant<int, 2>{}, row, height);
    } else {
      f(std::integral_constant<int, 1>{}, row, height);
    }
  }
}

/// The weights that are read next, requested under the steps of the tiles that come before: memory
/// is read while the tiles multiply. Two panels run in parallel, as one stream of requests does not
/// reach the bandwidth of a core.
struct Ahead {
  const std::byte* at[2];
  int64_t lines;  // that are left, of each panel
  int64_t share;  // of a step
  // Of a tile alone: what it reads, and the steps in it. None: there are others.
  const std::byte* here[2] = {};
  int64_t steps = 0, step = 0;

  /// The next weights in equal parts, for several tiles of rows that read the same.
  MOE_INLINE Ahead over(const std::byte* const (&next)[2], int64_t bytes, int64_t steps) {
    const int64_t lines = (bytes + kLineBytes - 1) / kLineBytes;
    return {{next[0], next[1]}, lines, (lines + steps - 1) / steps};
  }
  /// A tile alone waits for memory: what it reads next is asked for in L1, what it reads two steps
  /// later in L2. Requests into L2 alone, however far ahead, reach nine tenths of that.
  MOE_INLINE Ahead along(const std::byte* const (&here)[2], const std::byte* const (&next)[2],
                         int64_t steps) {
    return {{next[0], next[1]}, 0, 0, {here[0], here[1]}, steps};
  }
  [[gnu::always_inline]] inline void request() {
    if (steps > 0) {
      request_along();
      return;
    }
    const int64_t count = lines < share ? lines : share;
    for (int64_t i = 0; i < count; ++i) {
      prefetch_l2(at[0] + i * kLineBytes);
      prefetch_l2(at[1] + i * kLineBytes);
    }
    at[0] += count * kLineBytes;
    at[1] += count * kLineBytes;
    lines -= count;
  }

 private:
  [[gnu::always_inline]] inline const std::byte* place(int64_t s, int p) const {
    return s < steps ? here[p] + s * kStepBytes : at[p] + (s - steps) * kStepBytes;
  }
  [[gnu::always_inline]] inline void request_along() {
    ++step;
    const std::byte* near[2] = {place(step, 0), place(step, 1)};
    const std::byte* far[2] = {place(step + 2, 0), place(step + 2, 1)};
    MOE_UNROLL
    for (int64_t line = 0; line < kStepBytes; line += kLineBytes) {
      prefetch_l2(far[0] + line);
      prefetch_l2(far[1] + line);
      prefetch(near[0] + line);
      prefetch(near[1] + line);
    }
  }
};

template <int kTiles>
MOE_INLINE void clear_sums() {
  MOE_TILE_ZERO(0);
  MOE_TILE_ZERO(1);
  if constexpr (kTiles == 2) {
    MOE_TILE_ZERO(2);
    MOE_TILE_ZERO(3);
  }
}
/// Tiles 0 and 1, or 2 and 3: sixteen rows against two panels, `panel` bytes apart.
template <int first>
MOE_INLINE void store_pair(void* to, int64_t panel, int64_t stride) {
  auto* at = static_cast<std::byte*>(to);
  if constexpr (first == 0) {
    MOE_TILE_STORE(0, at, stride);
    MOE_TILE_STORE(1, at + panel, stride);
  } else {
    MOE_TILE_STORE(2, at, stride);
    MOE_TILE_STORE(3, at + panel, stride);
  }
}

/// Sums from and to outputs, [row][panel][sixteen].
template <int kTiles>
MOE_INLINE void load_outputs(const float* from) {
  constexpr int64_t kBelow = kTileHeight * 2 * kPanelRows, kRowBytes = 2 * kLineBytes;
  MOE_TILE_LOAD(0, from, kRowBytes);
  MOE_TILE_LOAD(1, from + kPanelRows, kRowBytes);
  if constexpr (kTiles == 2) {
    MOE_TILE_LOAD(2, from + kBelow, kRowBytes);
    MOE_TILE_LOAD(3, from + kBelow + kPanelRows, kRowBytes);
  }
}
template <int kTiles>
MOE_INLINE void store_outputs(float* to) {
  store_pair<0>(to, kLineBytes, 2 * kLineBytes);
  if constexpr (kTiles == 2) {
    store_pair<2>(to + kTileHeight * 2 * kPanelRows, kLineBytes, 2 * kLineBytes);
  }
}

/// What a step multiplies: bfloat16 pairs, or signed bytes by weights without a sign or with one.
enum class Step { kPairs, kUnsigned, kSigned };

template <Step kind, int sum, int x, int w>
MOE_INLINE void multiply_tiles() {
  if constexpr (kind == Step::kPairs) {
    MOE_TILE_DOT(tdpbf16ps, sum, x, w);
  } else if constexpr (kind == Step::kUnsigned) {
    MOE_TILE_DOT(tdpbsud, sum, x, w);
  } else {
    MOE_TILE_DOT(tdpbssd, sum, x, w);
  }
}

/// A step's words of every row against two panels: tiles 0 and 1, with two tiles of rows 2 and 3.
template <Step kind, int kTiles>
MOE_INLINE void multiply_step(const RowTiles& x, int64_t word, const std::byte* left,
                              const std::byte* right) {
  const std::byte* above = x.at + word * 4;
  const std::byte* below = above + kTileHeight * x.stride;
  MOE_TILE_LOAD(6, left, kLineBytes);
  MOE_TILE_LOAD(4, above, x.stride);
  multiply_tiles<kind, 0, 4, 6>();
  MOE_TILE_LOAD(7, right, kLineBytes);
  multiply_tiles<kind, 1, 4, 7>();
  if constexpr (kTiles == 2) {
    MOE_TILE_LOAD(5, below, x.stride);
    multiply_tiles<kind, 2, 5, 6>();
    multiply_tiles<kind, 3, 5, 7>();
  }
}

/// A step of at most sixteen rows whose sums are stored at once, with tiles that are taken in turn:
/// sums 0 and 1, or 2 and 3.
template <Step kind, int turn>
MOE_INLINE void multiply_in_turn(const RowTiles& x, int64_t word, const std::byte* left,
                                 const std::byte* right) {
  const std::byte* at = x.at + word * 4;
  MOE_TILE_LOAD(6, left, kLineBytes);
  if constexpr (turn == 0) {
    MOE_TILE_ZERO(0);
    MOE_TILE_ZERO(1);
    MOE_TILE_LOAD(4, at, x.stride);
  } else {
    MOE_TILE_ZERO(2);
    MOE_TILE_ZERO(3);
    MOE_TILE_LOAD(5, at, x.stride);
  }
  multiply_tiles<kind, 2 * turn, 4 + turn, 6>();
  MOE_TILE_LOAD(7, right, kLineBytes);
  multiply_tiles<kind, 2 * turn + 1, 4 + turn, 7>();
}

}  // namespace moe::MOE_ISA
