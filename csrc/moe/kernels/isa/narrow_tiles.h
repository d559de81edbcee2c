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

/// Bytes a and b of sixteen rows, side by side in a row's lane.
template <class F>
MOE_INLINE I16x32 pair_steps(U8x16 a, U8x16 b) {
  if constexpr (F::kMin) return pair_bytes(a, b);
  return pair_signed_bytes(a, b);
}
/// Group g's steps, in both halves of a lane.
template <class F>
MOE_INLINE I16x32 repeated_steps(const std::byte* block, int g) {
  if constexpr (is_decoded<F>()) {
    return load_i16(block + F::kScalesAt + g * 64);
  } else {
    const U8x16 step = F::template step_bytes<Vec>(block, g);
    return pair_steps<F>(step, step);
  }
}
/// What the sums of activations over groups g and g + 1 are multiplied by.
template <class F>
MOE_INLINE I16x32 paired_steps(const std::byte* block, int g) {
  if constexpr (is_decoded<F>()) {
    return load_i16(block + F::kSumStepsAt + g * 32);
  } else if constexpr (F::kMin) {
    return pair_steps<F>(F::template min_bytes<Vec>(block, g),
                         F::template min_bytes<Vec>(block, g + 1));
  } else {
    return pair_steps<F>(F::template step_bytes<Vec>(block, g),
                         F::template step_bytes<Vec>(block, g + 1));
  }
}

/// The kScaleBlock columns of a depth block from `begin` on, or what there is of them; columns are
/// counted from there.
template <class F, int R>
struct NarrowRange {
  using N = Runs<F>;
  static constexpr int kParts = std::max(1, F::kDepth / kScaleBlock);  // of a block
  static constexpr int kPieceColumns = 4 * N::kPieceWords;
  /// Whether all its addresses are constants: one row of a deep block. The long code of short
  /// blocks is slower from memory.
  static constexpr bool kWhole = R == 1 && !is_decoded<F>() && F::kDepth >= kScaleBlock;

  const TileCall& call;
  const uint32_t* x[R];    // its words
  const std::byte* block;  // the first
  int inner;               // its first column in that
  int64_t first_sum;       // of kSumGroup columns, in a row
  const std::byte* ahead;  // where what is requested lies, by a byte's distance from `block`

  [[gnu::always_inline]] inline NarrowRange(const TileCall& call_, const RowPointers<R>& rows,
                                            int64_t begin)
      : call(call_),
        block(call_.panels[0].blocks + block_at<F>(begin)),
        inner(static_cast<int>(begin / kScaleBlock % kParts) * kScaleBlock),
        first_sum((call_.depth_block * kDepthBlock + begin) / kSumGroup) {
    for (int r = 0; r < R; ++r) x[r] = rows.at(r, begin / 4);
    const PanelRange& range = call.panels[0];
    const int64_t at = block - range.blocks;
    ahead = (at < range.last ? range.ahead : range.after) + at;
  }
  [[gnu::always_inline]] const std::byte* block_of(int column) const {
    return block + (inner + column) / F::kDepth * F::kBlockBytes;
  }
  [[gnu::always_inline]] int group_of(int column) const {
    return (inner + column) % F::kDepth / F::kGroup;
  }
  [[gnu::always_inline]] const std::byte* unit_of(int column) const {
    return block_of(column) + (inner + column) % F::kDepth / F::kUnitDepth * F::kUnitBytes;
  }
  /// Requests the part i of n of the `bytes` that lie as far ahead as `at` is read: line by line, a
  /// few at once would wait for each other.
  template <int64_t bytes, int n>
  [[gnu::always_inline]] void request(const std::byte* at, int i) const {
    if constexpr (!is_in_cache<F>()) {
      const auto lines = [&](int part) { return (part * bytes + 64 * n - 1) / (64 * n); };
      const std::byte* line = ahead + (at - block);
      static_assert(bytes <= 64 * n);
      if (lines(i) == lines(i + 1)) return;
      line += 64 * lines(i);
      if constexpr (R < kTileRows / 2) {
        prefetch(line);
        prefetch_l2(line + kPrefetchBytes);
      } else {
        prefetch_l2(line);
      }
    }
  }
  [[gnu::always_inline]] void request_scale(int column) const {
    constexpr int64_t kBytes = F::kBlockBytes - F::kScalesAt;
    request<kBytes, F::kDepth / F::kGroup>(block_of(column) + F::kScalesAt, group_of(column));
  }

  /// `words` words from `first` on of the piece at `column`: their products times `factor`.
  template <int words>
  [[gnu::always_inline]] void add_words(int column, int first, I16x32 factor,
                                        I32x16 (&sum)[R]) const {
    const std::byte* unit = unit_of(column);
    MOE_UNROLL
    for (int begin = first; begin < first + words; begin += N::kWords) {
      I16x32 part[R];
      MOE_UNROLL
      for (int i = begin; i < begin + N::kWords; ++i) {
        request<F::kUnitBytes, N::kUnitWords>(unit + i / N::kUnitWords * F::kUnitBytes,
                                              i % N::kUnitWords);
        const U8x64 weight = narrow_word<F>(unit, i);
        const U8x64 sizes = N::kSigned ? byte_sizes(weight) : weight;
        MOE_UNROLL
        for (int r = 0; r < R; ++r) {
          const Words at = broadcast_word(x[r] + column / 4 + i);
          const I16x32 product =
              N::kSigned ? pair_products(at, weight, sizes) : pair_products(at, weight);
          part[r] = i == begin ? product : add(part[r], product);
        }
      }
      MOE_UNROLL
      for (int r = 0; r < R; ++r) sum[r] = dot_i16(sum[r], part[r], factor);
    }
  }

  /// A group's sums times its scale, and its minimum: added to value, or written where one group is
  /// all of it.
  [[gnu::always_inline]] void scale_group(int column, const I32x16 (&sum)[R],
                                          F32x16 (&value)[R][1]) const {
    F32x16 scale, min;
    request_scale(column);
    F::template scale<Vec>(block_of(column), group_of(column), scale, min);
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      I32x16 whole = sum[r];
      int32_t total = 0;
      if constexpr (F::kMin || !N::kSigned) {
        total = activation_sum<F::kGroup / kSumGroup>(call, r, first_sum + column / kSumGroup);
      }
      if constexpr (!F::kMin && !N::kSigned) {
        whole = add(whole, set1_i32(-F::kOffset * total));
      }
      const F32x16 q = to_f32(whole);
      value[r][0] = is_long_group<F>() ? mul(q, scale) : fma(q, scale, value[r][0]);
      if constexpr (F::kMin) {
        value[r][0] = fma(set1(static_cast<float>(total)), min, value[r][0]);
      }
    }
  }

  /// Scales in two levels: the sums of integers times steps, times d, and the minima. An offset is
  /// a minimum in steps.
  [[gnu::always_inline]] void scale_steps(I32x16 (&sum)[R], F32x16 (&value)[R][1]) const {
    constexpr int kPair = 2 * F::kGroup;
    static_assert(kPair == 32 || kPair == 64);
    const int64_t sums_at = kPair == 32 ? call.layout->short_sums_at : call.layout->pair_sums_at;
    I32x16 least[R];
    for (int r = 0; r < R; ++r) least[r] = set1_i32(0);
    MOE_UNROLL
    for (int column = 0; N::kSumSteps && column < kScaleBlock; column += kPair) {
      const I16x32 step = paired_steps<F>(block, group_of(column));
      MOE_UNROLL
      for (int r = 0; r < R; ++r) {
        const auto* sums = reinterpret_cast<const uint32_t*>(call.rows[r] + sums_at);
        const int64_t pair = first_sum / (kPair / kSumGroup) + column / kPair;
        least[r] = dot_i16(least[r], broadcast_word(sums + pair), step);
      }
    }
    F32x16 d, unit;
    F::template units<Vec>(block, d, unit);
    MOE_UNROLL
    for (int r = 0; r < R; ++r) {
      if constexpr (!F::kMin && N::kSumSteps) {
        sum[r] = sub(sum[r], mul(least[r], set1_i32(F::kOffset)));
      }
      value[r][0] = mul(to_f32(sum[r]), d);
      if constexpr (F::kMin) value[r][0] = fma(to_f32(least[r]), unit, value[r][0]);
    }
  }

  /// The columns from `column` on that are one piece of code.
  static constexpr int kSpan = std::max(kPieceColumns, F::kGroup);
  [[gnu::always_inline]] void add_span(int column, I32x16 (&sum)[R], F32x16 (&value)[R][1]) const {
    const I16x32 ones = set1_i16(1);
    if constexpr (kPieceColumns < F::kGroup) {
      clear_sums(sum);
      for (int piece = column; piece < column + kSpan; piece += kPieceColumns) {
        add_words<N::kPieceWords>(piece, 0, ones, sum);
      }
      scale_group(column, sum, value);
    } else {
      MOE_UNROLL
      for (int g = 0; g < kPieceColumns / F::kGroup; ++g) {
        const int group = column + g * F::kGroup;
        I16x32 factor = ones;
        if constexpr (N::kSteps) {
          request_scale(group);
          factor = repeated_steps<F>(block_of(group), group_of(group));
        } else {
          clear_sums(sum);
        }
        add_words<N::kGroupWords>(column, g * N::kGroupWords, factor, sum);
        if constexpr (!N::kSteps) scale_group(group, sum, value);
      }
    }
  }
  MOE_INLINE void clear_sums(I32x16 (&sum)[R]) {
    for (int r = 0; r < R; ++r) sum[r] = set1_i32(0);
  }

  /// All of it but the activations' scale.
  [[gnu::always_inline]] void run(int columns, F32x16 (&value)[R][1]) const {
    I32x16 sum[R];
    clear_sums(sum);
    clear(value);
    if (kWhole && columns == kScaleBlock) {
      MOE_UNROLL
      for (int column = 0; column < kScaleBlock; column += kSpan) add_span(column, sum, value);
    } else {
      for (int column = 0; column < columns; column += kSpan) add_span(column, sum, value);
    }
    if constexpr (N::kSteps) scale_steps(sum, value);
  }
};

template <class F, int R>
MOE_INLINE void narrow_range(const TileCall& call, const RowPointers<R>& x, int64_t begin,
                             int64_t end, F32x16 (&value)[R][1]) {
  NarrowRange<F, R>(call, x, begin).run(static_cast<int>(end - begin), value);
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
