#pragma once
// The matrix product of a segment in AMX tiles where floats are sums of two bfloat16 numbers
// (float16).
//
// Definition    out[t][n] = Σ_k x[t][k] · w[n][k]; w = w0 + w1 exactly, w0 the nearest number of
//               eight bits, and x = x0 + x1 to 16 bits (convert.h). x1 · w0, x0 · w0 and x0 · w1
//               are added in steps of 32 columns, even and odd ones apart (TDPBF16PS); x1 · w1 is
//               at most 2^-18 of a product and left out.
// Regularities  Few rows: a step's parts are made in L1 while tiles multiply the one before, and
//               sums stay in their tiles. More rows: a block's parts of both panels are made in L1
//               once for all of them. The same sums in the same order.
// Cost          Few rows: seven vector instructions for sixteen weights. Many: three products in
//               tiles, eight loads of tiles for twelve of them.

#include "moe/kernels/isa/amx.h"
#include "moe/kernels/isa/bf16_parts.h"
#include "moe/kernels/isa/expand.h"

namespace moe::MOE_ISA {

inline constexpr int kParts = parts_of(Dot::kBf16x2);
/// Columns of a step, and the bytes of its parts: in a panel's words, in a row.
inline constexpr int64_t kPartColumns = 2 * kTileWords;
inline constexpr int64_t kPartsBytes = kParts * kStepBytes, kRowPartsBytes = kParts * kLineBytes;
/// Steps whose parts are made at once for many rows.
inline constexpr int64_t kPartSteps = 4;

/// What is requested while byte i of a panel is read: near + i into L1, far + i into L2.
struct PartRequests {
  const std::byte *near, *far;
};

/// [step][part][sixteen words][sixteen outputs] of `columns` of a panel, in whole steps.
template <class F>
[[gnu::noinline]] static void lay_out_parts(const std::byte* panel, int64_t columns,
                                            const PartRequests* requests, std::byte* to) noexcept {
  const auto line = [&](int64_t k) MOE_INLINE_LAMBDA {
    F32x16 value[1];
    F::template values<Vec>(panel + k * F::kBlockBytes, value);
    return value[0];
  };
  const auto put = [&](int64_t word, F32x16 even, F32x16 odd) MOE_INLINE_LAMBDA {
    std::byte* at = to + word * kLineBytes;
    const F32x16 upper[2] = {to_nearest(even), to_nearest(odd)};
    store_u8(at, {pair_words(bits(upper[0]).v, bits(upper[1]).v)});
    store_u8(at + kStepBytes,
             {pair_words(bits(sub(even, upper[0])).v, bits(sub(odd, upper[1])).v)});
  };
  for (int64_t begin = 0; begin < columns; begin += kPartColumns, to += kPartsBytes) {
    if (columns - begin >= kPartColumns) {
#pragma GCC unroll 4
      for (int64_t word = 0; word < kTileWords; ++word) {
        const int64_t k = begin + 2 * word, at = k * F::kBlockBytes;
        // One by one: a step's requests at once made a row a fifth slower.
        if (requests != nullptr) {
          prefetch(requests->near + at);
          prefetch_l2(requests->far + at);
        }
        put(word, line(k), line(k + 1));
      }
      continue;
    }
    for (int64_t word = 0; word < kTileWords; ++word) {
      const int64_t k = begin + 2 * word;
      put(word, k < columns ? line(k) : zero_f32(), k + 1 < columns ? line(k + 1) : zero_f32());
    }
  }
}

/// A step of every row against two panels' parts: what is loaded serves two products where it can.
template <int kTiles>
MOE_INLINE void multiply_parts(const RowTiles& x, const std::byte* left, const std::byte* right) {
  const auto rows = [&](int part) MOE_INLINE_LAMBDA {
    const std::byte* above = x.at + part * kLineBytes;
    MOE_TILE_LOAD(4, above, x.stride);
    if constexpr (kTiles == 2) MOE_TILE_LOAD(5, above + kTileHeight * x.stride, x.stride);
  };
  const auto weights = [&](int part) MOE_INLINE_LAMBDA {
    MOE_TILE_LOAD(6, left + part * kStepBytes, kLineBytes);
    MOE_TILE_LOAD(7, right + part * kStepBytes, kLineBytes);
  };
  const auto multiply = [] MOE_INLINE_LAMBDA {
    multiply_tiles<Step::kPairs, 0, 4, 6>();
    multiply_tiles<Step::kPairs, 1, 4, 7>();
    if constexpr (kTiles == 2) {
      multiply_tiles<Step::kPairs, 2, 5, 6>();
      multiply_tiles<Step::kPairs, 3, 5, 7>();
    }
  };
  weights(0);
  rows(1);
  multiply();
  rows(0);
  multiply();
  weights(1);
  multiply();
}

/// The sums of a part of the depth, which go on from `out` unless it is the first.
template <int kTiles>
MOE_INLINE void begin_sums(bool first, const float* out) {
  if (first) {
    clear_sums<kTiles>();
  } else {
    load_outputs<kTiles>(out);
  }
}

/// At most thirty-two rows.
template <class F, int kTiles>
static void multiply_few_parts(const GemmCall& call, const std::byte* x) noexcept {
  alignas(64) std::byte words[2][2][kPartsBytes];
  const auto lay_out = [&](int64_t k, int turn) MOE_INLINE_LAMBDA {
    const int64_t left = call.end - k;
    for (int p = 0; p < 2; ++p) {
      const auto after = [&](int64_t bytes) MOE_INLINE_LAMBDA {
        const int64_t at = k + bytes / F::kBlockBytes;
        return at < call.end ? call.panels[p] + at * F::kBlockBytes
                             : call.next[p] + (at - call.end) * F::kBlockBytes;
      };
      const PartRequests requests = {after(kPrefetchBytes), after(2 * kPrefetchBytes)};
      lay_out_parts<F>(after(0), left < kPartColumns ? left : kPartColumns, &requests,
                       words[turn][p]);
    }
  };
  begin_sums<kTiles>(call.begin == 0, call.out);
  lay_out(call.begin, 0);
  int turn = 0;
  for (int64_t k = call.begin; k < call.end; k += kPartColumns, turn = 1 - turn) {
    const RowTiles rows = {x + k / kPartColumns * kRowPartsBytes, call.layout->row_bytes};
    multiply_parts<kTiles>(rows, words[turn][0], words[turn][1]);
    if (k + kPartColumns < call.end) lay_out(k + kPartColumns, 1 - turn);
  }
  store_outputs<kTiles>(call.out);
}

/// A block of the depth against up to thirty-two of many rows.
template <int kTiles>
MOE_INLINE void multiply_block(const RowTiles& x,
                               const std::byte (&words)[2][kPartSteps * kPartsBytes], int64_t steps,
                               bool first, float* out, Ahead& ahead) {
  begin_sums<kTiles>(first, out);
  for (int64_t s = 0; s < steps; ++s) {
    ahead.request();
    multiply_parts<kTiles>({x.at + s * kRowPartsBytes, x.stride}, words[0] + s * kPartsBytes,
                           words[1] + s * kPartsBytes);
  }
  store_outputs<kTiles>(out);
}

template <class F>
static void multiply_many_parts(const GemmCall& call, const std::byte* x) noexcept {
  constexpr int64_t kColumns = kPartSteps * kPartColumns;
  alignas(64) std::byte words[2][kPartSteps * kPartsBytes];
  const int64_t row_bytes = call.layout->row_bytes;
  const int64_t tiles = (call.count + kTilePair - 1) / kTilePair;
  int64_t configured = 0;
  for (int64_t k = call.begin; k < call.end; k += kColumns) {
    const int64_t columns = call.end - k < kColumns ? call.end - k : kColumns;
    const int64_t steps = (columns + kPartColumns - 1) / kPartColumns;
    const std::byte* next[2];
    for (int p = 0; p < 2; ++p) {
      const std::byte* panel = call.panels[p] + k * F::kBlockBytes;
      next[p] = k + columns < call.end ? panel + columns * F::kBlockBytes : call.next[p];
      lay_out_parts<F>(panel, columns, nullptr, words[p]);
    }
    Ahead ahead = Ahead::over(next, columns * F::kBlockBytes, tiles * steps);
    for (int64_t row = 0; row < call.count; row += kTilePair) {
      const int64_t height = call.count - row < kTilePair ? call.count - row : kTilePair;
      if (height != configured) configure_rows(height);
      configured = height;
      const RowTiles at = {x + row * row_bytes + k / kPartColumns * kRowPartsBytes, row_bytes};
      float* out = call.out + row * kGemmOutputs;
      if (height > kTileHeight) {
        multiply_block<2>(at, words, steps, k == 0, out, ahead);
      } else {
        multiply_block<1>(at, words, steps, k == 0, out, ahead);
      }
    }
  }
}

template <class F>
static void gemm_parts(const GemmCall& call) noexcept {
  static_assert(F::kDepth == 1 && 2 * F::kBlockBytes == kLineBytes);
  const std::byte* x = call.x + (call.rows != nullptr ? call.rows[0] : 0) * call.layout->row_bytes;
  if (call.count > kTilePair) {
    multiply_many_parts<F>(call, x);
  } else {
    configure_rows(call.count);
    if (call.count > kTileHeight) {
      multiply_few_parts<F, 2>(call, x);
    } else {
      multiply_few_parts<F, 1>(call, x);
    }
  }
  release_tiles();
}

}  // namespace moe::MOE_ISA
