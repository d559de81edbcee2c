#pragma once
// Weights decoded into a buffer, for products whose rows read them more than once: a depth block
// of any format becomes one of the few layouts below, and what multiplies those is shared by all
// formats. A tile that reads a format directly computes the same bits.

#include <type_traits>

#include "moe/kernels/table.h"
#include "moe/quant/formats.h"
#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

/// A group's bytes, one word after the other, then its sixteen scales and, where kMin, minima. The
/// byte that means zero is the format's that they come from (TileCall::offset).
template <int group, bool min>
struct ByteGroups {
  static constexpr bool kInCache = true;
  static constexpr int kDepth = group, kGroup = group, kUnitDepth = 4;
  static constexpr int64_t kUnitBytes = 64;
  static constexpr int64_t kScalesAt = group * kPanelRows;
  static constexpr int64_t kBlockBytes = kScalesAt + (min ? 128 : 64);
  static constexpr Dot kDot = Dot::kU8S8;
  static constexpr Scales kScales = Scales::kGroup;
  static constexpr bool kMin = min;

  template <class V>
  MOE_INLINE void weights(const std::byte* unit, typename V::U8* out) {
    out[0] = V::load_bytes(unit);
  }
  template <class V>
  MOE_INLINE void scale(const std::byte* block, int, typename V::F32& factor,
                        typename V::F32& least) {
    factor = V::load_f32(reinterpret_cast<const float*>(block + kScalesAt));
    if constexpr (min) least = V::load_f32(reinterpret_cast<const float*>(block + kScalesAt + 64));
  }
};

/// Whether a step times a code is a byte, with its sign where there are no minima. Steps of such a
/// format are signed, at most kLargestStep downwards and one less upwards.
template <class F>
constexpr bool has_byte_steps() {
  if constexpr (kScalesBytes && requires { F::Scale::kLargestStep; }) {
    constexpr int kStep = F::Scale::kLargestStep;
    return F::kMin ? kStep * F::kLargestByte < 256 : kStep * F::kOffset <= 128;
  }
  return false;
}

/// A range of the activations' scales of a format F whose scales have two levels: the words, the
/// groups' steps, their minima in pairs of 16 bits, and the block's units. Where steps times codes
/// are bytes these are the words: one sum holds for the whole range.
template <class F>
struct StepRange {
  static constexpr bool kInCache = true;
  static constexpr bool kBytes = has_byte_steps<F>();
  static constexpr int kDepth = kScaleBlock, kGroup = kBytes ? kScaleBlock : F::kGroup;
  static constexpr int kUnitDepth = 4;
  static constexpr int64_t kUnitBytes = 64;
  static constexpr bool kMin = F::kMin;
  static constexpr int kMinGroup = F::kGroup;
  /// s · (q − o) is at most 128 and at least −124.
  static constexpr int kOffset = kBytes && !kMin ? 127 : F::kOffset;
  static constexpr int64_t kScalesAt = kDepth * kPanelRows;
  static constexpr int64_t kPairsAt = kScalesAt + (kBytes ? 0 : kDepth / kGroup * 64);
  static constexpr int64_t kUnitsAt = kPairsAt + (kMin ? kDepth / kMinGroup * 32 : 0);
  static constexpr int64_t kBlockBytes = kUnitsAt + (kMin ? 128 : 64);
  static constexpr Dot kDot = Dot::kU8S8;
  static constexpr Scales kScales = Scales::kGroup;
  static constexpr Steps step_sums() { return F::step_sums(); }

  template <class V>
  MOE_INLINE void weights(const std::byte* unit, typename V::U8* out) {
    out[0] = V::load_bytes(unit);
  }
  MOE_INLINE I32x16 lanes(const std::byte* at) {
    return load_i32(reinterpret_cast<const int32_t*>(at));
  }
  template <class V>
  MOE_INLINE void steps(const std::byte* block, int g, typename V::I32& s, typename V::I32&) {
    s = lanes(block + kScalesAt + g * 64);
  }
  MOE_INLINE I32x16 min_pair(const std::byte* block, int i) {
    return lanes(block + kPairsAt + i * 64);
  }
  template <class V>
  MOE_INLINE void units(const std::byte* block, typename V::F32& d, typename V::F32& least) {
    d = V::load_f32(reinterpret_cast<const float*>(block + kUnitsAt));
    if constexpr (kMin) least = V::load_f32(reinterpret_cast<const float*>(block + kUnitsAt + 64));
  }
};

/// Pairs of bfloat16, then the group's sixteen scales.
template <int group>
struct PairGroups {
  static constexpr bool kInCache = true;
  static constexpr int kDepth = group, kGroup = group, kUnitDepth = 2;
  static constexpr int64_t kUnitBytes = 64;
  static constexpr int64_t kScalesAt = group * kPanelRows * 2;
  static constexpr int64_t kBlockBytes = kScalesAt + 64;
  static constexpr Dot kDot = Dot::kBf16;
  static constexpr Scales kScales = Scales::kGroup;
  static constexpr bool kMin = false;

  template <class V>
  MOE_INLINE void weights(const std::byte* unit, typename V::U8* out) {
    out[0] = V::load_bytes(unit);
  }
  template <class V>
  MOE_INLINE void scale(const std::byte* block, int, typename V::F32& factor, typename V::F32&) {
    factor = V::load_f32(reinterpret_cast<const float*>(block + kScalesAt));
  }
};

#ifdef __AMX_TILE__
inline constexpr bool kHasTiles = true;
#else
inline constexpr bool kHasTiles = false;
#endif

/// Whether the scales of F have two levels, which the products keep apart.
template <class F>
constexpr Steps step_sums() {
  if constexpr (requires { F::step_sums(); }) return F::step_sums();
  return Steps::kNone;
}
template <class F>
constexpr bool has_steps() {
  return step_sums<F>() != Steps::kNone;
}
/// A group's scale and minimum; where they have two levels, its step.
template <class F>
MOE_INLINE void load_scale(const std::byte* block, int group, F32x16& scale, F32x16& min) {
  if constexpr (has_steps<F>()) {
    I32x16 s, m;
    F::template steps<Vec>(block, group, s, m);
    scale = to_f32(s);
  } else {
    F::template scale<Vec>(block, group, scale, min);
  }
}

#ifdef MOE_PAIR_SUMS
inline constexpr bool kHasPairSums = true;
#else
inline constexpr bool kHasPairSums = false;
#endif
/// Whether F's bytes are multiplied in pairs (isa/narrow_tiles.h).
template <class F>
constexpr bool is_narrow() {
  return kHasPairSums && F::kDot == Dot::kU8S8 && F::kScales == Scales::kGroup;
}
template <class F>
struct NarrowGroups;

/// What multiplies many rows of format F: F itself where a word needs no decoding, unless tiles
/// want its bytes with their sign.
template <class F>
struct FastLayout {
  using Type = F;
};
template <class F>
  requires(has_steps<F>() && !is_narrow<F>())
struct FastLayout<F> {
  using Type = StepRange<F>;
};
template <class F>
  requires(F::kScales == Scales::kGroup && F::kDot == Dot::kU8S8 && !is_narrow<F>() &&
           !has_steps<F>() && (kHasTiles || F::kUnitDepth > 4))
struct FastLayout<F> {
  using Type = ByteGroups<F::kGroup, F::kMin>;
};
template <class F>
  requires(is_narrow<F>())
struct FastLayout<F> {
  using Type = NarrowGroups<F>;
};
template <class F>
  requires(F::kScales == Scales::kGroup && F::kDot == Dot::kBf16)
struct FastLayout<F> {
  using Type = PairGroups<F::kGroup>;
};

/// How far ahead of a single tile's reads the weights are requested, in bytes of one panel.
inline constexpr int64_t kPrefetchBytes = 2048;

/// Requests what is read kPrefetchBytes after `unit`: of the same blocks, which end at `end`, or of
/// `next`.
template <class F>
MOE_INLINE void prefetch_unit(const std::byte* unit, const std::byte* end, const std::byte* next) {
  const int64_t left = end - unit;
  const std::byte* at =
      left > kPrefetchBytes ? unit + kPrefetchBytes : next + (kPrefetchBytes - left);
  MOE_UNROLL
  for (int64_t i = 0; i < F::kUnitBytes; i += 64) prefetch(at + i);
}

/// One panel's blocks as floats [depth][16], for the exact path; `next` is read after them.
template <class F>
[[gnu::noinline]] static void expand_values(const std::byte* block, const std::byte* next,
                                            const std::byte* trailer, int64_t blocks,
                                            std::byte* to) noexcept {
  auto* out = reinterpret_cast<float*>(to);
  const std::byte* end = block + blocks * F::kBlockBytes;
  for (int64_t b = 0; b < blocks; ++b, block += F::kBlockBytes) {
    for (int u = 0; u < F::kDepth / F::kUnitDepth; ++u) {
      F32x16 value[F::kUnitDepth], scale = set1(1.0f), min = zero_f32();
      prefetch_unit<F>(block + u * F::kUnitBytes, end, next);
      F::template values<Vec>(block + u * F::kUnitBytes, value);
      if constexpr (F::kScales == Scales::kRow) {
        scale = load(reinterpret_cast<const float*>(trailer));
      }
      for (int k = 0; k < F::kUnitDepth; ++k, out += kPanelRows) {
        if constexpr (F::kScales == Scales::kGroup) {
          const int column = u * F::kUnitDepth + k;
          if (k == 0 || column % F::kGroup == 0) {
            F::template scale<Vec>(block, column / F::kGroup, scale, min);
          }
          value[k] = mul(value[k], scale);
          if constexpr (F::kMin) value[k] = add(value[k], min);
        } else {
          value[k] = mul(value[k], scale);
        }
        store(out, value[k]);
      }
    }
  }
}

/// One panel's blocks as operands of the fast path, in E's layout; kSigned: bytes less kOffset.
/// Nothing is requested meanwhile: the tiles before have asked for these blocks, and what lies
/// behind them would come from memory, whose lines under way are all that L1 can have.
template <class F, class E, bool kSigned = false>
  requires(!has_steps<F>())
[[gnu::noinline]] static void expand_weights(const std::byte* block, int64_t blocks,
                                             std::byte* out) noexcept {
  constexpr int kDepthOfWord = depth_per_word(F::kDot);
  constexpr int kUnitWords = F::kUnitDepth / kDepthOfWord;
  constexpr int kGroupWords = F::kGroup / kDepthOfWord;
  for (int64_t b = 0; b < blocks; ++b, block += F::kBlockBytes) {
    for (int u = 0; u < F::kDepth / F::kUnitDepth; ++u) {
      U8x64 word[kUnitWords];
      F::template weights<Vec>(block + u * F::kUnitBytes, word);
      MOE_UNROLL
      for (int i = 0; i < kUnitWords; ++i) {
        const int w = u * kUnitWords + i;
        if constexpr (kSigned) word[i] = sub_bytes(word[i], F::kOffset);
        store_u8(out + w / kGroupWords * E::kBlockBytes + w % kGroupWords * 64, word[i]);
      }
    }
    for (int g = 0; g < F::kDepth / F::kGroup; ++g, out += E::kBlockBytes) {
      F32x16 scale, min;
      F::template scale<Vec>(block, g, scale, min);
      auto* to = reinterpret_cast<float*>(out + E::kScalesAt);
      store(to, scale);
      if constexpr (E::kMin) store(to + kPanelRows, min);
    }
  }
}

/// The same where scales have two levels.
template <class F, class E>
  requires(has_steps<F>())
[[gnu::noinline]] static void expand_weights(const std::byte* block, int64_t blocks,
                                             std::byte* out) noexcept {
  constexpr int kUnitWords = F::kUnitDepth / 4, kGroupWords = F::kGroup / 4;
  constexpr int kGroups = E::kDepth / F::kGroup;
  for (int64_t b = 0; b < blocks; ++b, block += F::kBlockBytes) {
    F32x16 d, least;
    F::template units<Vec>(block, d, least);
    MOE_UNROLL
    for (int part = 0; part < F::kDepth / E::kDepth; ++part, out += E::kBlockBytes) {
      I32x16 step[kGroups], min[kGroups], start[kGroups];
      MOE_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        F::template steps<Vec>(block, part * kGroups + g, step[g], min[g]);
        if constexpr (!E::kBytes) {
          store_i32(reinterpret_cast<int32_t*>(out + E::kScalesAt) + g * kPanelRows, step[g]);
        } else if constexpr (!F::kMin) {
          // Zero's byte less the step times F's, in all four of a word.
          const I32x16 zero = mul(step[g], set1_i32(F::kOffset));
          start[g] = mul(sub(set1_i32(E::kOffset), zero), set1_i32(0x01010101));
        }
        if (F::kMin && g % 2 != 0) {
          store_i32(reinterpret_cast<int32_t*>(out + E::kPairsAt) + g / 2 * kPanelRows,
                    add(min[g - 1], shift_left(min[g], 16)));
        }
      }
      store(reinterpret_cast<float*>(out + E::kUnitsAt), d);
      if constexpr (F::kMin) store(reinterpret_cast<float*>(out + E::kUnitsAt + 64), least);
      MOE_UNROLL
      for (int w = 0; w < E::kDepth / 4; w += kUnitWords) {
        const int64_t unit = (part * E::kDepth / 4 + w) / kUnitWords * F::kUnitBytes;
        U8x64 word[kUnitWords];
        F::template weights<Vec>(block + unit, word);
        MOE_UNROLL
        for (int i = 0; i < kUnitWords; ++i) {
          const int g = (w + i) / kGroupWords;
          if constexpr (E::kBytes && F::kMin) {
            word[i] = scale_small_bytes(word[i], step[g]);
          } else if constexpr (E::kBytes) {
            word[i] = scale_small_bytes(word[i], step[g], start[g]);
          }
          store_u8(out + (w + i) * 64, word[i]);
        }
      }
    }
  }
}

}  // namespace moe::MOE_ISA
