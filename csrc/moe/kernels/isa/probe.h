#pragma once
// The limits of this instruction set: multiply peaks and a read loop.
//
// Definition    multiply: sum[c] = dot(sum[c], x, w) for independent c; read: Σ of all words
// Regularities  sums stay in registers, operands in the first cache lines of L1, a word of x serves
//               as many weights as in a tile: the multiplier limits it, or what else this
//               instruction set's dot product is made of
// Cost          chains · 16 lanes · 2 · depth_per_word operations a step

#include "moe/kernels/probe.h"
#include "moe/simd/vec.h"
#ifdef __AMX_TILE__
#include "moe/kernels/isa/amx.h"
#endif

namespace moe::MOE_ISA {

// A fused multiply-add takes 4 cycles and up to two start in each, so 8 registers hide its latency;
// AVX-512 has room for 12 and more, AVX2 has 12 (two to a vector) beside the operands.
inline constexpr int kProbeChains = kTileRows < 6 ? kTileRows : kTilePanels == 1 ? 6 : 16;
// Enough steps that the loop's own instructions vanish.
inline constexpr int kProbeSteps = 8;

template <Dot kind>
struct ProbeDot {
  using Sum = F32x16;
  using Weight = F32x16;
  MOE_INLINE Sum start(const float* p) { return load(p); }
  MOE_INLINE Weight weight(const uint32_t* p) { return load(reinterpret_cast<const float*>(p)); }
  MOE_INLINE Sum step(Sum sum, Words x, Weight w) { return dot_f32(sum, x, w); }
  MOE_INLINE float value(Sum sum) { return reduce_add(sum); }
};
template <>
struct ProbeDot<Dot::kBf16> : ProbeDot<Dot::kF32> {
  using Weight = U8x64;
  MOE_INLINE Weight weight(const uint32_t* p) { return load_u8(p); }
  MOE_INLINE Sum step(Sum sum, Words x, Weight w) { return dot_bf16(sum, x, w); }
};
template <>
struct ProbeDot<Dot::kU8S8> {
  using Sum = I32x16;
  using Weight = U8x64;
  MOE_INLINE Sum start(const float* p) { return bits(load(p)); }
  MOE_INLINE Weight weight(const uint32_t* p) { return load_u8(p); }
  MOE_INLINE Sum step(Sum sum, Words x, Weight w) { return dot_u8s8(sum, x, w); }
  MOE_INLINE float value(Sum sum) { return reduce_add(to_f32(sum)); }
};

template <Dot kind>
static float probe_multiply(int64_t rounds) noexcept {
  using D = ProbeDot<kind>;
  // Pairs of opposite signs in every kind but the first: integer sums stay at 0, far from overflow.
  constexpr uint32_t kX = kind == Dot::kF32    ? 0x3f800000u
                          : kind == Dot::kBf16 ? 0xbf803f80u
                                               : 0xff01ff01u;
  constexpr uint32_t kW = kind == Dot::kF32    ? 0x3f800000u
                          : kind == Dot::kBf16 ? 0x3f803f80u
                                               : 0x03030303u;
  alignas(64) uint32_t x[kProbeChains], w[16 * kTilePanels];
  alignas(64) float zeros[16 * kProbeChains] = {};
  for (uint32_t& word : x) word = kX;
  for (uint32_t& lane : w) lane = kW;
  // The compiler must not know the values: it would compute equal chains once.
  asm volatile("" : "+m"(zeros));
  typename D::Sum sum[kProbeChains];
  MOE_UNROLL
  for (int c = 0; c < kProbeChains; ++c) sum[c] = D::start(zeros + 16 * c);
  for (int64_t r = 0; r < rounds; ++r) {
    MOE_UNROLL
    for (int s = 0; s < kProbeSteps; ++s) {
      // Nor that they stay the same: it would fold this step's products into the last one's.
      asm volatile("" : "+m"(x), "+m"(w));
      typename D::Weight weight[kTilePanels];
      MOE_UNROLL
      for (int p = 0; p < kTilePanels; ++p) weight[p] = D::weight(w + 16 * p);
      MOE_UNROLL
      for (int c = 0; c < kProbeChains; c += kTilePanels) {
        const Words at = broadcast_word(x + c / kTilePanels);
        MOE_UNROLL
        for (int p = 0; p < kTilePanels; ++p) sum[c + p] = D::step(sum[c + p], at, weight[p]);
      }
    }
  }
  float total = 0.0f;
  MOE_UNROLL
  for (int c = 0; c < kProbeChains; ++c) total += D::value(sum[c]);
  return total;
}

#ifdef MOE_PAIR_SUMS
inline constexpr int kPairChains = 3;
/// Bytes as isa/narrow_tiles.h multiplies them at best: kProbeSteps words of codes of four bits
/// added in 16 bits, then widened.
static float probe_pairs(int64_t rounds) noexcept {
  alignas(64) uint32_t x[kPairChains], w[16];
  for (uint32_t& word : x) word = 0xff01ff01u;  // signs that cancel each other, as above
  for (uint32_t& lane : w) lane = 0x03030303u;
  const I16x32 ones = set1_i16(1);
  I32x16 sum[kPairChains];
  MOE_UNROLL
  for (int c = 0; c < kPairChains; ++c) sum[c] = set1_i32(0);
  for (int64_t r = 0; r < rounds; ++r) {
    I16x32 run[kPairChains];
    MOE_UNROLL
    for (int s = 0; s < kProbeSteps; ++s) {
      asm volatile("" : "+m"(x), "+m"(w));
      const U8x64 weight = load_u8(w);
      MOE_UNROLL
      for (int c = 0; c < kPairChains; ++c) {
        const I16x32 pairs = pair_products(broadcast_word(x + c), weight);
        run[c] = s == 0 ? pairs : add(run[c], pairs);
      }
    }
    MOE_UNROLL
    for (int c = 0; c < kPairChains; ++c) sum[c] = dot_i16(sum[c], run[c], ones);
  }
  float total = 0.0f;
  MOE_UNROLL
  for (int c = 0; c < kPairChains; ++c) total += reduce_add(to_f32(sum[c]));
  return total;
}
#endif

#ifdef __AMX_TILE__
/// Four independent tiles of sums: the next product starts every 16 cycles, and a sum is ready
/// after 52. The operands are noise: zeros draw less power, so that the clock would be one that no
/// product of weights ever sees.
template <Step kind>
static float probe_tiles(int64_t rounds) noexcept {
  alignas(64) uint32_t noise[4][kTileHeight * kTileWords];
  uint32_t state = 1;
  for (auto& tile : noise) {
    for (uint32_t& word : tile) {
      state ^= state << 13;  // xorshift (Marsaglia 2003)
      state ^= state >> 17;
      state ^= state << 5;
      // bfloat16: two numbers of either sign from 0.5 to 2.
      word = kind == Step::kPairs ? (state & 0x80ff80ffu) | 0x3f003f00u : state;
    }
  }
  configure_tiles(kTileHeight, kTileHeight, kTileWords);
  clear_sums<2>();
  MOE_TILE_LOAD(4, noise[0], kLineBytes);
  MOE_TILE_LOAD(5, noise[1], kLineBytes);
  MOE_TILE_LOAD(6, noise[2], kLineBytes);
  MOE_TILE_LOAD(7, noise[3], kLineBytes);
  for (int64_t r = 0; r < rounds; ++r) {
    multiply_tiles<kind, 0, 4, 6>();
    multiply_tiles<kind, 1, 4, 7>();
    multiply_tiles<kind, 2, 5, 6>();
    multiply_tiles<kind, 3, 5, 7>();
  }
  release_tiles();
  return 0.0f;
}
#endif

static uint32_t probe_read(const std::byte* data, int64_t bytes) noexcept {
  constexpr int kLines = kProbeReadBytes / 64;
  constexpr int64_t kAheadBytes = 1024;
  I32x16 sum[kLines];
  MOE_UNROLL
  for (int line = 0; line < kLines; ++line) sum[line] = set1_i32(0);
  for (int64_t i = 0; i < bytes; i += kProbeReadBytes) {
    MOE_UNROLL
    for (int line = 0; line < kLines; ++line) {
      const std::byte* at = data + i + line * 64;
      prefetch(at + kAheadBytes);
      sum[line] = add(sum[line], load_i32(reinterpret_cast<const int32_t*>(at)));
    }
  }
  I32x16 total = sum[0];
  MOE_UNROLL
  for (int line = 1; line < kLines; ++line) total = add(total, sum[line]);
  int32_t lanes[16];
  store_i32(lanes, total);
  uint32_t folded = 0;
  for (const int32_t lane : lanes) folded += static_cast<uint32_t>(lane);
  return folded;
}

constexpr int64_t probe_operations(Dot dot) {
#ifdef __AMX_TILE__
  if (dot != Dot::kF32)
    return int64_t{4} * kTileHeight * kTileWords * kLanes * 2 * depth_per_word(dot) /
           products_of(dot);
#endif
  int64_t chains = kProbeChains;
#ifdef MOE_PAIR_SUMS
  if (dot == Dot::kU8S8) chains = kPairChains;
#endif
  return int64_t{2} * kLanes * depth_per_word(dot) * chains * kProbeSteps / products_of(dot);
}

static constexpr ProbeKernels kProbeKernels = {
#ifdef __AMX_TILE__
    {&probe_multiply<Dot::kF32>, &probe_tiles<Step::kPairs>, &probe_tiles<Step::kUnsigned>,
     &probe_tiles<Step::kPairs>},
#elif defined(MOE_PAIR_SUMS)
    {&probe_multiply<Dot::kF32>, &probe_multiply<Dot::kBf16>, &probe_pairs,
     &probe_multiply<Dot::kBf16>},
#else
    {&probe_multiply<Dot::kF32>, &probe_multiply<Dot::kBf16>, &probe_multiply<Dot::kU8S8>,
     &probe_multiply<Dot::kBf16>},
#endif
    {probe_operations(Dot::kF32), probe_operations(Dot::kBf16), probe_operations(Dot::kU8S8),
     probe_operations(Dot::kBf16x2)},
    &probe_read};

}  // namespace moe::MOE_ISA
