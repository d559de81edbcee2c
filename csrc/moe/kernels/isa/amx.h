#pragma once
// AMX: eight tile registers of sixteen rows × 64 bytes, and the product of two of them.
//
// Tiles 0 … 3 are sums [16 rows][16 outputs], 4 and 5 activations [16 rows][16 words], 6 and 7
// weights [16 words][16 outputs]: a panel's words lie in memory as the product wants them. Written
// as instructions, because the intrinsics of g++ 12 do not say that they read memory.

#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

inline constexpr int kTileHeight = 16;
inline constexpr int kTileWords = 16;

/// The tiles' shapes: `above` rows of activations and sums in the first tile, `below` in the
/// second. What the tiles held is lost.
MOE_INLINE void configure_tiles(int above, int below) {
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  const auto first = static_cast<uint8_t>(above), second = static_cast<uint8_t>(below);
  const Config config = {1,
                         0,
                         {},
                         {64, 64, 64, 64, 64, 64, 64, 64},
                         {first, first, second, second, first, second, 16, 16}};
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}
/// Without this a thread switch saves 8 KB.
MOE_INLINE void release_tiles() { __asm__ volatile("tilerelease" : : : "memory"); }

#define MOE_TILE_LOAD(tile, from, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(stride) : "memory")
#define MOE_TILE_STORE(tile, to, stride) \
  __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(stride) : "memory")
#define MOE_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
#define MOE_TILE_DOT(instruction, sum, x, w) \
  __asm__ volatile(#instruction " %%tmm" #w ", %%tmm" #x ", %%tmm" #sum : :)

}  // namespace moe::MOE_ISA
