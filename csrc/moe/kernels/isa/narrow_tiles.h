#pragma once
// Integer tiles for an instruction set that multiplies bytes in pairs only, into 16 bits (AVX2
// without VNNI).
//
// Definition    register_tiles.h's: the same integers, scaled and added in the same order: the same
//               bytes.
// Regularities  A pair's products of codes of few bits leave room in 16 bits: words are added there
//               and widened once for a run of them. Where scales have two levels the group's step
//               is multiplied on the way. Codes that take the whole byte are signed instead, their
//               sign given to the activations.
// Cost          A word of codes against a row: two products, two additions; one more product and
//               addition each for a run (4 bits: eight words).

#include <algorithm>
#include <bit>

#include "moe/kernels/isa/register_tiles.h"

namespace moe::MOE_ISA {

/// How the words of F are added up.
template <class F>
struct Runs {
  /// Bytes less the offset, with their sign: two products of larger ones exceed 16 bits.
  static constexpr bool kSigned = F::kLargestByte > 129;
  static constexpr bool kSteps = has_steps<F>();
  /// Steps that the activations' sums are multiplied by: minima, or those of an offset.
  static constexpr bool kSumSteps = kSteps && (F::kMin || !kSigned);
  static constexpr int kGroupWords = F::kGroup / 4, kUnitWords = F::kUnitDepth / 4;
  /// Words that go through the registers as one piece of code, whole units.
  static constexpr int kPieceWords = std::max(kUnitWords, std::min(kGroupWords, 8));
  /// Words whose products are added in 16 bits.
  static constexpr int kMost = kSigned ? 1 : 32767 / (2 * 127 * F::kLargestByte);
  static constexpr int kWords =
      std::bit_floor(static_cast<unsigned>(std::min({kMost, kGroupWords, kPieceWords})));
  static_assert(!kSigned || (F::kOffset == 128 && !F::kMin));
};

/// F decoded: groups' words, then what they are multiplied by. Scales in one level: floats, a scale
/// and where kMin a minimum for each group; in two: steps twice in 16 bits, kSumSteps in pairs of
/// groups, the block's units.
template <class F>
struct NarrowGroups {
  static constexpr bool kInCache = true, kDecoded = true;
  static constexpr int kDepth = std::min<int>(F::kDepth, kScaleBlock);
  static constexpr int kGroup = F::kGroup, kUnitDepth = 4;
  static constexpr int64_t kUnitBytes = 64;
  static constexpr int kOffset = F::kOffset, kLargestByte = F::kLargestByte;
  static constexpr Dot kDot = Dot::kU8S8;
  static constexpr Scales kScales = Scales::kGroup;
  static constexpr bool kMin = F::kMin;
  static constexpr Steps step_sums() { return MOE_ISA::step_sums<F>(); }
  static constexpr int kGroups = kDepth / kGroup;
  static constexpr int64_t kScalesAt = kDepth * kPanelRows;
  static constexpr int64_t kSumStepsAt = kScalesAt + kGroups * 64;
  static constexpr int64_t kUnitsAt = kSumStepsAt + (Runs<F>::kSumSteps ? kGroups * 32 : 0);
  static constexpr int64_t kBlockBytes =
      Runs<F>::kSteps ? kUnitsAt + 128 : kScalesAt + kGroups * (kMin ? 128 : 64);

  template <class V>
  MOE_INLINE typename V::U8 word(const std::byte* unit, int) {
    return V::load_bytes(unit);
  }
  template <class V>
  MOE_INLINE void scale(const std::byte* block, int g, typename V::F32& factor,
                        typename V::F32& least) {
    const auto* at = reinterpret_cast<const float*>(block + kScalesAt + g * (kMin ? 128 : 64));
    factor = V::load_f32(at);
    if constexpr (kMin) least = V::load_f32(at + kPanelRows);
  }
  template <class V>
  MOE_INLINE void units(const std::byte* block, typename V::F32& d, typename V::F32& least) {
    d = V::load_f32(reinterpret_cast<const float*>(block + kUnitsAt));
    if constexpr (kMin) least = V::load_f32(reinterpret_cast<const float*>(block + kUnitsAt + 64));
  }
};

template <class F>
constexpr bool is_decoded() {
  return requires { F::kDecoded; };
}

/// Word i from `unit` on, which may lie in a unit after it.
template <class F>
MOE_INLINE U8x64 narrow_word(const std::byte* unit, int i) {
  constexpr int kWords = Runs<F>::kUnitWords;
  const U8x64 word = F::template word<Vec>(unit + i / kWords * F::kUnitBytes, i % kWords);
  if constexpr (Runs<F>::kSigned && !is_decoded<F>()) return xor_bytes(word, 128);
  return word;
}

/// Group g's steps, in both halves of a lane.
template <class F>
MOE_INLINE I16x32 repeated_steps(const std::byte* block, int g) {
  if constexpr (is_decoded<F>()) {
    return load_i16(block + F::kScalesAt + g * 64);
  } else {
    I32x16 step, min;
    F::template steps<Vec>(block, g, step, min);
    return pair_halves(step, step);
  }
}
/// What the sums of activations over groups g and g + 1 are multiplied by.
template <class F>
MOE_INLINE I16x32 paired_steps(const std::byte* block, int g) {
  if constexpr (is_decoded<F>()) {
    return load_i16(block + F::kSumStepsAt + g * 32);
  } else {
    I32x16 step[2], min[2];
    for (int i = 0; i < 2; ++i) F::template steps<Vec>(block, g + i, step[i], min[i]);
    return F::kMin ? pair_halves(min[0], min[1]) : pair_halves(step[0], step[1]);
  }
}

/// `count` words from `first` on of the piece at `unit`, activations from `x` + word on: their
/// products times `factor`.
template <class F, int R>
MOE_INLINE void add_words(const std::byte* unit, int first, int count,
                          const uint32_t* const (&x)[R], int64_t word, I16x32 factor,
                          I32x16 (&sum)[R]) {
  constexpr int kWords = Runs<F>::kWords;
  MOE_UNROLL
  for (int begin = first; begin < first + count; begin += kWords) {
    I16x32 part[R];
    MOE_UNROLL
    for (int i = begin; i < begin + kWords; ++i) {
      const U8x64 weight = narrow_word<F>(unit, i);
      const U8x64 sizes = Runs<F>::kSigned ? byte_sizes(weight) : weight;
      MOE_UNROLL
      for (int r = 0; r < R; ++r) {
        const Words at = broadcast_word(x[r] + word + i);
        const I16x32 product =
            Runs<F>::kSigned ? pair_products(at, weight, sizes) : pair_products(at, weight);
        part[r] = i == begin ? product : add(part[r], product);
      }
    }
    MOE_UNROLL
    for (int r = 0; r < R; ++r) sum[r] = dot_i16(sum[r], part[r], factor);
  }
}

/// Requests what is to come while a piece is read.
template <class F, int R>
MOE_INLINE void request_piece(const TileCall& call, int64_t at) {
  MOE_UNROLL
  for (int64_t i = 0; i < Runs<F>::kPieceWords / Runs<F>::kUnitWords * F::kUnitBytes; i += 64) {
    request<F, R>(call.panels[0], at + i);
  }
}
template <class F, int R>
MOE_INLINE void request_scales(const TileCall& call, int64_t column) {
  constexpr int64_t kScaleBytes = (F::kBlockBytes - F::kScalesAt) / (F::kDepth / F::kGroup);
  const int64_t group = column % F::kDepth / F::kGroup;
  request<F, R>(call.panels[0], block_at<F>(column) + F::kScalesAt + group * kScaleBytes);
}

/// A group's sums times its scale, and its minimum: added to value, or written where one group is
/// all of it.
template <class F, int R>
MOE_INLINE void scale_group(const TileCall& call, int64_t column, const I32x16 (&sum)[R],
                            F32x16 (&value)[R][1]) {
  constexpr int kSums = F::kGroup / kSumGroup;
  const std::byte* block = call.panels[0].blocks + block_at<F>(column);
  const int64_t first_sum = (call.depth_block * kDepthBlock + column) / kSumGroup;
  F32x16 scale, min;
  request_scales<F, R>(call, column);
  F::template scale<Vec>(block, static_cast<int>(column % F::kDepth) / F::kGroup, scale, min);
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    I32x16 whole = sum[r];
    int32_t total = 0;
    if constexpr (F::kMin || !Runs<F>::kSigned) total = activation_sum<kSums>(call, r, first_sum);
    if constexpr (!F::kMin && !Runs<F>::kSigned) {
      whole = add(whole, set1_i32(-F::kOffset * total));
    }
    const F32x16 q = to_f32(whole);
    value[r][0] = is_long_group<F>() ? mul(q, scale) : fma(q, scale, value[r][0]);
    if constexpr (F::kMin) {
      value[r][0] = fma(set1(static_cast<float>(total)), min, value[r][0]);
    }
  }
}

/// Scales in two levels: the sums of integers times steps, times d, and the minima. An offset is a
/// minimum in steps.
template <class F, int R>
MOE_INLINE void scale_steps(const TileCall& call, int64_t begin, int64_t end, I32x16 (&sum)[R],
                            F32x16 (&value)[R][1]) {
  constexpr int kPair = 2 * F::kGroup;
  static_assert(kPair == 32 || kPair == 64);
  const std::byte* block = call.panels[0].blocks + block_at<F>(begin);
  const int64_t sums_at = kPair == 32 ? call.layout->short_sums_at : call.layout->pair_sums_at;
  I32x16 least[R];
  for (int r = 0; r < R; ++r) least[r] = set1_i32(0);
  for (int64_t column = begin; Runs<F>::kSumSteps && column < end; column += kPair) {
    const I16x32 step = paired_steps<F>(block, static_cast<int>(column % F::kDepth) / F::kGroup);
    const int64_t pair = (call.depth_block * kDepthBlock + column) / kPair;
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      const auto* sums = reinterpret_cast<const uint32_t*>(call.rows[r] + sums_at);
      least[r] = dot_i16(least[r], broadcast_word(sums + pair), step);
    }
  }
  F32x16 d, unit;
  F::template units<Vec>(block, d, unit);
  MOE_UNROLL
  for (int r = 0; r < R; ++r) {
    if constexpr (!F::kMin && Runs<F>::kSumSteps) {
      sum[r] = sub(sum[r], mul(least[r], set1_i32(F::kOffset)));
    }
    value[r][0] = mul(to_f32(sum[r]), d);
    if constexpr (F::kMin) value[r][0] = fma(to_f32(least[r]), unit, value[r][0]);
  }
}

/// Columns [begin, end) of a depth block, all but the activations' scale.
template <class F, int R>
MOE_INLINE void narrow_range(const TileCall& call, const uint32_t* const (&x)[R], int64_t begin,
                             int64_t end, F32x16 (&value)[R][1]) {
  using N = Runs<F>;
  constexpr int kPiece = 4 * N::kPieceWords;
  constexpr int kSpan = std::max(kPiece, F::kGroup);
  constexpr int kPieceGroups = kPiece / F::kGroup;
  const std::byte* blocks = call.panels[0].blocks;
  const I16x32 ones = set1_i16(1);
  I32x16 sum[R];
  for (int r = 0; r < R; ++r) sum[r] = set1_i32(0);
  clear(value);
  for (int64_t column = begin; column < end; column += kSpan) {
    if constexpr (kPieceGroups == 0) {
      for (int r = 0; r < R; ++r) sum[r] = set1_i32(0);
      for (int64_t k = column; k < column + kSpan; k += kPiece) {
        request_piece<F, R>(call, unit_at<F>(k));
        add_words<F, R>(blocks + unit_at<F>(k), 0, N::kPieceWords, x, k / 4, ones, sum);
      }
      scale_group<F, R>(call, column, sum, value);
    }
    if constexpr (kPieceGroups > 0) request_piece<F, R>(call, unit_at<F>(column));
    MOE_UNROLL
    for (int g = 0; g < kPieceGroups; ++g) {
      const int64_t group = column + g * F::kGroup;
      I16x32 factor = ones;
      if constexpr (N::kSteps) {
        request_scales<F, R>(call, group);
        factor = repeated_steps<F>(blocks + block_at<F>(column),
                                   static_cast<int>(group % F::kDepth) / F::kGroup);
      } else {
        for (int r = 0; r < R; ++r) sum[r] = set1_i32(0);
      }
      add_words<F, R>(blocks + unit_at<F>(column), g * N::kGroupWords, N::kGroupWords, x,
                      column / 4, factor, sum);
      if constexpr (!N::kSteps) scale_group<F, R>(call, group, sum, value);
    }
  }
  if constexpr (N::kSteps) scale_steps<F, R>(call, begin, end, sum, value);
}

/// One panel's blocks in the layout NarrowGroups<F>; `next` is read after them.
template <class F>
[[gnu::noinline]] static void expand_narrow(const std::byte* block, const std::byte* next,
                                            int64_t blocks, std::byte* out) noexcept {
  using E = NarrowGroups<F>;
  const std::byte* end = block + blocks * F::kBlockBytes;
  for (int64_t b = 0; b < blocks; ++b, block += F::kBlockBytes) {
    for (int part = 0; part < F::kDepth / E::kDepth; ++part, out += E::kBlockBytes) {
      const std::byte* unit = block + part * E::kDepth / F::kUnitDepth * F::kUnitBytes;
      for (int w = 0; w < E::kDepth / 4; w += Runs<F>::kUnitWords, unit += F::kUnitBytes) {
        prefetch_unit<F>(unit, end, next);
        MOE_UNROLL
        for (int i = 0; i < Runs<F>::kUnitWords; ++i) {
          store_u8(out + (w + i) * 64, narrow_word<F>(unit, i));
        }
      }
      for (int g = 0; g < E::kGroups; ++g) {
        const int group = part * E::kGroups + g;
        if constexpr (Runs<F>::kSteps) {
          store_i16(out + E::kScalesAt + g * 64, repeated_steps<F>(block, group));
          if (Runs<F>::kSumSteps && g % 2 == 0) {
            store_i16(out + E::kSumStepsAt + g * 32, paired_steps<F>(block, group));
          }
        } else {
          F32x16 scale, min;
          F::template scale<Vec>(block, group, scale, min);
          auto* to = reinterpret_cast<float*>(out + E::kScalesAt + g * (E::kMin ? 128 : 64));
          store(to, scale);
          if constexpr (E::kMin) store(to + kPanelRows, min);
        }
      }
      if constexpr (Runs<F>::kSteps) {
        F32x16 d, least;
        F::template units<Vec>(block, d, least);
        store(reinterpret_cast<float*>(out + E::kUnitsAt), d);
        if constexpr (E::kMin) store(reinterpret_cast<float*>(out + E::kUnitsAt + 64), least);
      }
    }
  }
}

}  // namespace moe::MOE_ISA
