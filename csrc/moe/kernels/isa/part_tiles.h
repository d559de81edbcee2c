#pragma once
// The matrix product of a segment in AMX tiles where floats are sums of bfloat16 numbers (float16).
//
// Definition    out[t][n] = Σ_k x[t][k] · w[n][k]; w = w0 + w1 exactly, w0 the first eight bits,
// and
//               x = x0 + x1 + x2 to 24 bits (convert.h). x2 · w0, x1 · w0, x0 · w0, x0 · w1 and
//               x1 · w1 are added in steps of 32 columns, even and odd ones apart (TDPBF16PS);
//               x2 · w1 is at most 2^-23 of a product and left out.
// Regularities  A step's parts are made in L1 while tiles multiply the one before, by every
//               thirty-two rows anew: that is free under the products, and sums stay in their
//               tiles.
// Cost          Few rows: six vector instructions for sixteen weights. Many: five products in
//               tiles, twelve loads of tiles for twenty of them.

#include "moe/kernels/isa/amx.h"
#include "moe/kernels/isa/bf16_parts.h"
#include "moe/kernels/isa/expand.h"

namespace moe::MOE_ISA {

/// Columns of a step, and the bytes of its parts: in a panel's words, in a row.
inline constexpr int64_t kPartColumns = 2 * kTileWords;
inline constexpr int64_t kPartsBytes = 2 * kStepBytes;
inline constexpr int64_t kRowPartsBytes = parts_of(Dot::kBf16x2) * kLineBytes;
/// Columns that all of many rows meet before the next, so that they stay in L2.
inline constexpr int64_t kPartBlock = 1024;

/// Words [first, first + kCount) of a step's parts, [part][sixteen words][sixteen outputs];
/// `columns` lie before the panel's end, zeros behind it. What is at `ahead` is requested, line by
/// line.
template <class F, int kCount>
MOE_INLINE void lay_out_words(const std::byte* panel, int64_t columns, int64_t first,
                              const std::byte* ahead, std::byte* to) {
  const auto line = [&](int64_t k) MOE_INLINE_LAMBDA {
    F32x16 value[1];
    F::template values<Vec>(panel + k * F::kBlockBytes, value);
    return value[0];
  };
  const auto put = [&](int64_t word, F32x16 even, F32x16 odd) MOE_INLINE_LAMBDA {
    std::byte* at = to + word * kLineBytes;
    store_u8(at, {pair_words(bits(even).v, bits(odd).v)});
    store_u8(at + kStepBytes, {pair_words(bits(behind_cut(even)).v, bits(behind_cut(odd)).v)});
  };
  if (columns >= kPartColumns) {
#pragma GCC unroll 4
    for (int64_t word = first; word < first + kCount; ++word) {
      // One by one: a step's requests at once made a row a fifth slower.
      prefetch(ahead + 2 * word * F::kBlockBytes);
      put(word, line(2 * word), line(2 * word + 1));
    }
    return;
  }
  for (int64_t word = first; word < first + kCount; ++word) {
    const int64_t k = 2 * word;
    put(word, k < columns ? line(k) : zero_f32(), k + 1 < columns ? line(k + 1) : zero_f32());
  }
}

/// A step of every row against two panels' parts: what is loaded serves two products where it can.
/// Between the products, four times, `meanwhile`.
template <int kTiles, class Meanwhile>
MOE_INLINE void multiply_parts(const RowTiles& x, const std::byte* left, const std::byte* right,
                               const Meanwhile& meanwhile) {
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
  rows(2);
  multiply();
  meanwhile(0);
  rows(1);
  multiply();
  meanwhile(1);
  rows(0);
  multiply();
  meanwhile(2);
  weights(1);
  multiply();
  meanwhile(3);
  rows(1);
  multiply();
}

/// Columns [begin, end) of up to thirty-two rows. A step's parts are made between the products of
/// the one before, as the processor does not look far enough ahead to find them itself.
template <class F, int kTiles>
MOE_INLINE void multiply_rows(const GemmCall& call, int64_t begin, int64_t end, const std::byte* x,
                              float* out, Ahead& ahead) {
  constexpr int kHalf = kTileWords / 2;
  alignas(64) std::byte words[2][2][kPartsBytes];
  /// Half of a panel's words of the step at k.
  const auto lay_out = [&](int64_t k, int turn, int half) MOE_INLINE_LAMBDA {
    const int p = half / 2;
    const std::byte* panel = call.panels[p] + k * F::kBlockBytes;
    const int64_t near = k + kPrefetchBytes / F::kBlockBytes;
    const std::byte* request = near < call.end ? panel + kPrefetchBytes
                                               : call.next[p] + (near - call.end) * F::kBlockBytes;
    lay_out_words<F, kHalf>(panel, end - k, half % 2 * kHalf, request, words[turn][p]);
  };
  if (begin == 0) {
    clear_sums<kTiles>();
  } else {
    load_outputs<kTiles>(out);
  }
  for (int half = 0; half < 4; ++half) lay_out(begin, 0, half);
  int turn = 0;
  for (int64_t k = begin; k < end; k += kPartColumns, turn = 1 - turn) {
    const RowTiles rows = {x + k / kPartColumns * kRowPartsBytes, call.layout->row_bytes};
    const int64_t next = k + kPartColumns;
    ahead.request();
    multiply_parts<kTiles>(rows, words[turn][0], words[turn][1], [&](int half) MOE_INLINE_LAMBDA {
      if (next < end) lay_out(next, 1 - turn, half);
    });
  }
  store_outputs<kTiles>(out);
}

template <class F>
static void gemm_parts(const GemmCall& call) noexcept {
  static_assert(F::kDepth == 1 && 2 * F::kBlockBytes == kLineBytes);
  const int64_t row_bytes = call.layout->row_bytes;
  const std::byte* x = call.x + (call.rows != nullptr ? call.rows[0] : 0) * row_bytes;
  const int64_t tiles = (call.count + kTilePair - 1) / kTilePair;
  // Few rows read a panel from memory once.
  const int64_t most = tiles == 1 ? call.end - call.begin : kPartBlock;
  int64_t configured = 0;
  for (int64_t begin = call.begin; begin < call.end; begin += most) {
    const int64_t end = call.end - begin < most ? call.end : begin + most;
    const std::byte* next[2];
    for (int p = 0; p < 2; ++p) {
      next[p] = end < call.end ? call.panels[p] + end * F::kBlockBytes : call.next[p];
    }
    const int64_t steps = (end - begin + kPartColumns - 1) / kPartColumns;
    Ahead ahead = Ahead::over(next, tiles == 1 ? 0 : (end - begin) * F::kBlockBytes, tiles * steps);
    each_tile_pair(call.count, configured, [&](auto tiled, int64_t row, int64_t) MOE_INLINE_LAMBDA {
      multiply_rows<F, decltype(tiled)::value>(call, begin, end, x + row * row_bytes,
                                               call.out + row * kGemmOutputs, ahead);
    });
  }
  release_tiles();
}

}  // namespace moe::MOE_ISA
