#pragma once
// The matrix product of a segment in AMX tiles where scales have two levels (the K formats and
// IQ4_XS): the tiles multiply codes times steps.
//
// Definition    gemm.h's integer tiles: the same integers Σ s · q · x of a range, then d, the
//               minima and the activations' scale in the same order: the same bytes.
// Regularities  The product of a step s and a code q is one byte or two: two products of a whole
//               step instead of one for each group, whose sums leave the tiles once a range.
//                 with minima     s = 8 a + b, so that a · q and b · q are bytes
//                 without, signs  s · q = 128 a + b; in Q3_K −s · q is a byte
//               Between a range's products stand the additions of the range before: the processor
//               does not look far enough ahead to find them itself.

#include "moe/kernels/isa/expand.h"
#include "moe/kernels/isa/scaled_tiles.h"

namespace moe::MOE_ISA {

template <class F>
struct StepLayout {
  static constexpr bool kSigned = !F::kMin;
  static constexpr int kStep = F::Scale::kLargestStep;
  static constexpr int kCode = kSigned ? F::kOffset : F::Codes::kLargestByte;  // the largest
  static constexpr bool kByte = kSigned ? kStep * kCode <= 128 : kStep * kCode < 256;
  static constexpr int kParts = kByte ? 1 : 2;
  static constexpr int kLow = kSigned ? 7 : 3;  // bits of b
  static constexpr int kWords = F::kDepth / 4;
  static constexpr int kGroups = F::kDepth / F::kGroup;
  static constexpr int kRanges = F::kDepth / kScaleBlock;
  static_assert(kSigned ? kStep * kCode <= 128 * 127
                        : kCode * ((1 << kLow) - 1) < 256 && kCode * (kStep >> kLow) < 256);
};

/// One panel's block: the parts b and a of words.
template <class F>
struct StepWords {
  using L = StepLayout<F>;
  alignas(64) std::byte part[L::kParts][L::kWords * 64];
};
/// As floats d and the minima's unit, and the groups' minima in pairs of 16 bits.
template <class F>
struct StepScales {
  alignas(64) int32_t min[F::kMin ? StepLayout<F>::kGroups / 2 : 1][kPanelRows];
  alignas(64) float d[kPanelRows], least[kPanelRows];
};

template <class F>
[[gnu::noinline]] static void expand_steps(const std::byte* block, StepWords<F>& words,
                                           StepScales<F>& scales) noexcept {
  using L = StepLayout<F>;
  constexpr int kUnitWords = F::kUnitDepth / 4;
  I32x16 step[L::kGroups];
  MOE_UNROLL
  for (int g = 0; g < L::kGroups; g += 2) {
    I32x16 even, odd;
    F::template steps<Vec>(block, g, step[g], even);
    F::template steps<Vec>(block, g + 1, step[g + 1], odd);
    if constexpr (F::kMin) store_i32(scales.min[g / 2], add(even, shift_left(odd, 16)));
  }
  F32x16 d, least;
  F::template units<Vec>(block, d, least);
  if constexpr (F::kMin) store(scales.least, least);
  store(scales.d, d);
  MOE_UNROLL
  for (int u = 0; u < F::kDepth / F::kUnitDepth; ++u) {
    U8x64 word[kUnitWords];
    F::template weights<Vec>(block + u * F::kUnitBytes, word);
    MOE_UNROLL
    for (int i = 0; i < kUnitWords; ++i) {
      const int w = u * kUnitWords + i;
      const I32x16 s = step[w * 4 / F::kGroup];
      U8x64 part[2];
      if constexpr (L::kSigned && L::kByte) {
        part[0] = scale_bytes(sub_bytes(word[i], F::kOffset), sub(set1_i32(0), s));
      } else if constexpr (L::kSigned) {
        scale_bytes(word[i], s, F::kOffset, part[1], part[0]);
      } else if constexpr (L::kByte) {
        part[0] = scale_small_bytes(word[i], s);
      } else {
        part[0] = scale_small_bytes(word[i], and_bits(s, set1_i32((1 << L::kLow) - 1)));
        part[1] = scale_small_bytes(word[i], shift_right(s, L::kLow));
      }
      for (int j = 0; j < L::kParts; ++j) store_u8(words.part[j] + w * 64, part[j]);
    }
  }
}

/// Sixteen rows in a block of two panels.
template <class F>
struct StepRows {
  RowTiles words;
  int64_t count = 0, done;  // the first rows may be done
  const std::byte* totals;  // the first row's sums over groups, 16 bits each, and its scales
  const float* by;
  float* out;
  const StepScales<F>* scales;  // of two panels
};

/// Sums of a range, still to be scaled and added.
template <class F, int range>
struct PendingStep {
  using L = StepLayout<F>;
  static constexpr int kPairs = L::kGroups / L::kRanges / 2;
  const StepRows<F>& rows;
  const int32_t* sums;
  F32x16 d[2], least[2];
  I32x16 min[2][kPairs];

  [[gnu::always_inline]] inline PendingStep(const StepRows<F>& rows_, const int32_t* sums_)
      : rows(rows_), sums(sums_) {
    if (rows.count == 0) return;
    MOE_UNROLL
    for (int p = 0; p < 2; ++p) {
      d[p] = load(rows.scales[p].d);
      if constexpr (!F::kMin) continue;
      least[p] = load(rows.scales[p].least);
      MOE_UNROLL
      for (int i = 0; i < kPairs; ++i) min[p][i] = load_i32(rows.scales[p].min[range * kPairs + i]);
    }
  }
  /// n rows from the given one on, or those of them that there are.
  template <int n>
  [[gnu::always_inline]] inline void add(int64_t first) const {
    const int64_t end = first + n < rows.count ? first + n : rows.count;
    const int64_t begin = first < rows.done ? rows.done : first;
    if (begin >= end) return;
    const int64_t stride = rows.words.stride;
    const int32_t* at = sums + begin * kPanelRows;
    const std::byte* totals = rows.totals + begin * stride + range * kPairs * 4;
    const std::byte* by = reinterpret_cast<const std::byte*>(rows.by + range) + begin * stride;
    float* to = rows.out + begin * kGemmOutputs;
    const auto row = [&](int64_t r) MOE_INLINE_LAMBDA {
      I32x16 least_sum[2] = {set1_i32(0), set1_i32(0)};
      MOE_UNROLL
      for (int i = 0; F::kMin && i < kPairs; ++i) {
        const Words x = broadcast_word(reinterpret_cast<const uint32_t*>(totals) + i);
        MOE_UNROLL
        for (int p = 0; p < 2; ++p) least_sum[p] = dot_i16(least_sum[p], x, min[p][i]);
      }
      const F32x16 scale = set1(*reinterpret_cast<const float*>(by));
      MOE_UNROLL
      for (int p = 0; p < 2; ++p) {
        const int32_t* from = at + r * kPanelRows + p * kPanelSums<1>;
        I32x16 sum = load_i32(from);
        if constexpr (L::kParts == 2) {
          sum = moe::MOE_ISA::add(sum, shift_left(load_i32(from + 2 * kPanelSums<1>), L::kLow));
        }
        if constexpr (L::kSigned && L::kByte) sum = sub(set1_i32(0), sum);
        F32x16 part = mul(to_f32(sum), d[p]);
        if constexpr (F::kMin) part = fma(to_f32(least_sum[p]), least[p], part);
        float* value = to + r * kGemmOutputs + p * kPanelRows;
        store(value, fma(part, scale, load(value)));
      }
      totals += stride;
      by += stride;
    };
    if (end - begin == n) {
      MOE_UNROLL
      for (int r = 0; r < n; ++r) row(r);
    } else {
      for (int64_t r = 0; r < end - begin; ++r) row(r);
    }
  }
};

/// The products of a range of the rows; meanwhile those of the range before are added.
template <class F, int range, class Pending>
MOE_INLINE void multiply_steps(const StepWords<F> (&panels)[2], const RowTiles& rows, int32_t* sums,
                               const Pending& last, Ahead& ahead) {
  using L = StepLayout<F>;
  constexpr int kSteps = kScaleBlock / 4 / kTileWords;
  constexpr int kRows = kTileHeight / (kSteps * L::kParts * 2);
  constexpr Step kKind = L::kSigned ? Step::kSigned : Step::kUnsigned;
  clear_sums<L::kParts>();
  MOE_UNROLL
  for (int i = 0; i < kSteps; ++i) {
    constexpr int kFirst = range * kSteps * kTileWords;
    const int64_t word = kFirst + i * kTileWords;
    const auto part = [&](int j, int p)
                          MOE_INLINE_LAMBDA { return panels[p].part[j] + word * kLineBytes; };
    const auto meanwhile = [&](int j) MOE_INLINE_LAMBDA {
      last.template add<kRows>((i * 2 * L::kParts + j) * kRows);
    };
    ahead.request();
    MOE_TILE_LOAD(4, rows.at + word * 4, rows.stride);
    MOE_TILE_LOAD(6, part(0, 0), kLineBytes);
    multiply_tiles<kKind, 0, 4, 6>();
    meanwhile(0);
    MOE_TILE_LOAD(7, part(0, 1), kLineBytes);
    multiply_tiles<kKind, 1, 4, 7>();
    meanwhile(1);
    if constexpr (L::kParts == 2) {
      MOE_TILE_LOAD(6, part(1, 0), kLineBytes);
      multiply_tiles<kKind, 2, 4, 6>();
      meanwhile(2);
      MOE_TILE_LOAD(7, part(1, 1), kLineBytes);
      multiply_tiles<kKind, 3, 4, 7>();
      meanwhile(3);
    }
  }
  constexpr int64_t kPanel = kPanelSums<1> * 4;
  store_pair<0>(sums, kPanel, kLineBytes);
  if constexpr (L::kParts == 2) store_pair<2>(sums + 2 * kPanelSums<1>, kPanel, kLineBytes);
}

/// The rows follow each other in memory.
template <class F>
static void run_step_tiles(const GemmCall& call, const std::byte* const* x) noexcept {
  using L = StepLayout<F>;
  static_assert(L::kRanges == 2);
  const ActivationLayout& layout = *call.layout;
  const EvenTiles tiles(call.count, kTileHeight);
  const int64_t totals_at = F::kGroup == kSumGroup ? layout.short_sums_at : layout.pair_sums_at;
  StepWords<F> words[2];
  StepScales<F> scales[2][2];
  alignas(64) TileSums<L::kParts> first_sums, second_sums;
  StepRows<F> last{};
  configure_rows<kTileWords, true>(tiles.height);
  if (call.begin == 0) clear_outputs(call.out, call.count);
  for (int64_t b = call.begin; b < call.end; ++b) {
    const std::byte* next[2];
    for (int p = 0; p < 2; ++p) {
      const std::byte* block = call.panels[p] + b * F::kBlockBytes;
      next[p] = b + 1 < call.end ? block + F::kBlockBytes : call.next[p];
      expand_steps<F>(block, words[p], scales[b % 2][p]);
    }
    const int64_t steps = tiles.number * (L::kWords / kTileWords);
    Ahead ahead = Ahead::over(next, F::kBlockBytes, steps);
    for (int64_t t = 0; t < tiles.number; ++t) {
      const int64_t first = tiles.begin(t);
      const StepRows<F> now = {
          {x[first] + b * F::kDepth, layout.row_bytes},
          tiles.height,
          tiles.done(t),
          x[first] + totals_at + b * L::kGroups * 2,
          reinterpret_cast<const float*>(x[first] + layout.scales_at) + b * L::kRanges,
          call.out + first * kGemmOutputs,
          scales[b % 2]};
      multiply_steps<F, 0>(words, now.words, first_sums, PendingStep<F, 1>(last, second_sums),
                           ahead);
      multiply_steps<F, 1>(words, now.words, second_sums, PendingStep<F, 0>(now, first_sums),
                           ahead);
      last = now;
    }
  }
  PendingStep<F, 1>(last, second_sums).template add<kTileHeight>(0);
  release_tiles();
}

}  // namespace moe::MOE_ISA
