#pragma once
// int4, int3, int2 in groups of 32, 64 or 128 columns with an f16 scale for each row and group; and
// int4 with a zero point (GPTQ, AWQ).

#include "moe/quant/fit.h"
#include "moe/quant/group_block.h"

namespace moe {

/// d · q with q in [−2^(bits−1), 2^(bits−1) − 1].
template <int bits, int group>
struct IntFormat : GroupBlock<IntFormat<bits, group>, group, group, Codes<bits>, HalfScale> {
  static constexpr int kOffset = 1 << (bits - 1);

  static void quantise(const float* x, uint8_t* codes, f16& d) {
    d = to_f16(fit_scale(x, group, -kOffset, kOffset - 1));
    scale_codes(x, group, to_float(d), -kOffset, kOffset - 1, codes);
  }
};
template <int group>
using Int4Format = IntFormat<4, group>;
template <int group>
using Int3Format = IntFormat<3, group>;

// At namespace scope: a member would be one symbol that every instruction set's object shares.
static constexpr NearestTable kInt2Nearest({-3, -1, 1, 3});

/// d · (2 c − 3) with c in [0, 3]: −3 d, −d, d, 3 d, the four levels of least error for weights
/// around zero.
template <int group>
struct Int2Format : GroupBlock<Int2Format<group>, group, group, Codes<2, 1>, HalfScale> {
  static constexpr int kOffset = 3;
  static constexpr bool kHasZero = false;

  static void quantise(const float* x, uint8_t* codes, f16& d) {
    d = to_f16(fit_table(x, group, kInt2Nearest));
    table_codes(x, group, to_float(d), kInt2Nearest, codes);
  }
};

/// d · (q − zero) with q in [0, 15] and zero in [0, 255], both as a checkpoint has them. In the
/// bytes that are packed without a loss: f16 d, zero, then a byte for two columns, the low half
/// first.
template <int group>
struct Int4ZeroFormat : GroupBlock<Int4ZeroFormat<group>, group, group, Codes<4>, HalfScaleZero> {
  using Row = HalfScaleZero::Row;
  static constexpr int kOffset = 0;
  static constexpr int64_t kFileBytes = 3 + group / 2;
  static constexpr bool kCutBlocks = true;

  static void quantise(const float* x, uint8_t* codes, Row& by) {
    const Affine fit = fit_affine(x, group, 15);
    by.d = to_f16(fit.scale);
    const float d = to_float(by.d);
    if (d == 0.0f) {  // all equal: one code, one step below zero
      by.d = to_f16(-fit.min);
      by.zero = 1;
      std::memset(codes, 0, group);
      return;
    }
    by.zero = static_cast<uint8_t>(std::min(-fit.min / d + 0.5f, 255.0f));
    affine_codes(x, group, {d, -d * static_cast<float>(by.zero)}, 15, codes);
  }
  static void read(const uint8_t* file, uint8_t* codes, Row& by) {
    std::memcpy(&by.d, file, 2);
    by.zero = file[2];
    for (int k = 0; k < group; ++k) codes[k] = (file[3 + k / 2] >> (k % 2 * 4)) & 15;
  }
};

}  // namespace moe
