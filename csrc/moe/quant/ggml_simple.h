#pragma once
// GGUF's blocks of 32 columns: Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 IQ4_NL MXFP4; NVFP4 (64 in groups of 16),
// Q1_0 (128). From floats Q8_0 … Q5_1 are rounded as ggml does. Each struct's comment says what a
// block is in a file.

#include "moe/quant/fit.h"
#include "moe/quant/group_block.h"

namespace moe {

/// f16 d, 32 signed bytes: d · q.
struct Q8_0Format : GroupBlock<Q8_0Format, 32, 32, Codes<8>, HalfScale> {
  static constexpr int kOffset = 128;
  static constexpr int64_t kFileBytes = 34;
  static void read(const uint8_t* file, uint8_t* codes, f16& d);
  static void quantise(const float* x, uint8_t* codes, f16& d);
};

/// f16 d, 16 bytes: column j in byte j's low half, j + 16 in its high one: d · (q − 8).
struct Q4_0Format : GroupBlock<Q4_0Format, 32, 32, Codes<4>, HalfScale> {
  static constexpr int kOffset = 8;
  static constexpr int64_t kFileBytes = 18;
  static void read(const uint8_t* file, uint8_t* codes, f16& d);
  static void quantise(const float* x, uint8_t* codes, f16& d);
};

/// f16 d, f16 m, 16 bytes as in Q4_0: d · q + m.
struct Q4_1Format : GroupBlock<Q4_1Format, 32, 32, Codes<4>, HalfScaleMin> {
  static constexpr int kOffset = 0;
  static constexpr int64_t kFileBytes = 20;
  static void read(const uint8_t* file, uint8_t* codes, Row& by);
  static void quantise(const float* x, uint8_t* codes, Row& by);
};

/// f16 d, 32 fifth bits, 16 bytes: d · (q − 16).
struct Q5_0Format : GroupBlock<Q5_0Format, 32, 32, Codes<5>, HalfScale> {
  static constexpr int kOffset = 16;
  static constexpr int64_t kFileBytes = 22;
  static void read(const uint8_t* file, uint8_t* codes, f16& d);
  static void quantise(const float* x, uint8_t* codes, f16& d);
};

/// f16 d, f16 m, 32 fifth bits, 16 bytes: d · q + m.
struct Q5_1Format : GroupBlock<Q5_1Format, 32, 32, Codes<5>, HalfScaleMin> {
  static constexpr int kOffset = 0;
  static constexpr int64_t kFileBytes = 24;
  static void read(const uint8_t* file, uint8_t* codes, Row& by);
  static void quantise(const float* x, uint8_t* codes, Row& by);
};

// Twice the values of a four-bit float E2M1, plus 12. At namespace scope: a member would be one
// symbol that every instruction set's object shares.
static constexpr uint8_t kE2m1Bytes[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                           12, 11, 10, 9,  8,  6,  4,  0};
struct E2m1Table {
  [[gnu::always_inline]] static constexpr const uint8_t* bytes() { return kE2m1Bytes; }
};
using E2m1Codes = TableCodes<4, E2m1Table>;

/// OCP MXFP4: E2M1 in groups of 32 with a power of two. In a file: the exponent byte, then 16
/// bytes. From floats: the shared exponent is floor(log2 max|x|) − 2 (OCP MX 1.0, section 6.3),
/// values round to nearest.
struct Mxfp4Format : GroupBlock<Mxfp4Format, 32, 32, E2m1Codes, ExponentScale> {
  static constexpr int kOffset = 12;
  static constexpr int64_t kFileBytes = 17;
  static void read(const uint8_t* file, uint8_t* codes, uint8_t& exponent);
  static void quantise(const float* x, uint8_t* codes, uint8_t& exponent);
};

/// NVFP4 as GGUF has it: four unsigned E4M3 scales, then 8 bytes for each 16 columns.
struct Nvfp4Format : GroupBlock<Nvfp4Format, 64, 16, E2m1Codes, TinyFloatScales<4>> {
  static constexpr int kOffset = 12;
  static constexpr float kLargest = 448.0f * 6.0f;  // the largest scale and code
  static constexpr int64_t kFileBytes = 36;
  static void read(const uint8_t* file, uint8_t* codes, Row& by);
  static void quantise(const float* x, uint8_t* codes, Row& by);
};

static constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};
static constexpr NearestTable kIq4Nearest(kIq4Values);
static constexpr uint8_t kIq4Bytes[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                          129, 141, 153, 166, 181, 197, 217, 241};
struct Iq4Table {
  [[gnu::always_inline]] static constexpr const uint8_t* bytes() { return kIq4Bytes; }
};
using Iq4Codes = TableCodes<4, Iq4Table>;

/// f16 d, a bit for each of 128 columns: d where it is set, else −d. Errors as large as the weights
/// leave GPTQ nothing to gain, so there is no rounding one by one: kGridPoints.
struct Q1_0Format : GroupBlock<Q1_0Format, 128, 128, Codes<1, 1>, HalfScale> {
  static constexpr int kOffset = 1;
  static constexpr int kGridPoints = 2;
  static constexpr bool kHasZero = false;
  static constexpr int64_t kFileBytes = 18;
  static void read(const uint8_t* file, uint8_t* codes, f16& d);
  static void quantise(const float* x, uint8_t* codes, f16& d);
};

/// f16 d, 16 bytes: d · kIq4Values[q].
struct Iq4NlFormat : GroupBlock<Iq4NlFormat, 32, 32, Iq4Codes, HalfScale> {
  static constexpr int kOffset = 128;
  static constexpr int64_t kFileBytes = 18;
  static void read(const uint8_t* file, uint8_t* codes, f16& d);
  static void quantise(const float* x, uint8_t* codes, f16& d);
};

}  // namespace moe
