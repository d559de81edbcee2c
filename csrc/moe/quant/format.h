#pragma once
// What a weight format is: how a panel of sixteen output rows lies in memory, how it is written
// from floats, and how it is read back. One header per family of formats; formats.inc lists them
// all.
//
// A format F is a struct of constants and static functions:
//
//   kDepth              depth (input columns) of one block; a panel's depth is padded to a multiple
//   kBlockBytes         bytes of a block for sixteen rows; blocks follow each other along the depth
//   kTrailerBytes       bytes after the last block (scales that hold for a whole row)
//   kUnitDepth          columns that are decoded at once; units follow each other in a block
//   kUnitBytes          bytes of a unit, scales apart
//   kDot                the dot product of its fast path (see Dot)
//   kScales             what its scales belong to (Scales)
//   values<V>(unit, out)                   the unit's columns as floats, scales left out; exact
//   weights<V>(unit, out)                  fast path: the unit's operands, one for each word
//   encode(rows, depth, panel)             writes a panel from sixteen rows of floats
//   at(panel, depth, row, k)               one weight's value; packing written as one equation
//   round(panel, depth, row, k, x)         optional, what GPTQ needs: writes the value nearest to x
//                                          that the scales in the panel allow, and returns it
// Where kDot is kU8S8:
//   kOffset             the byte that means zero
// Where kScales is kGroup:
//   kGroup, kMin        columns that share a scale; whether the scale comes with a minimum
//   scale<V>(block, group, scale, min)     sixteen rows' of a group: value = scale · q + min
//   kHasZero            whether 0 is a value whatever the scale (padding is not 0 where it is not)
// Formats of files:
//   kFileBytes, repack(rows, blocks, panel)  a block's bytes in a GGUF file, and a panel from
//   sixteen
//                                            rows of such blocks, lossless
//
// No intrinsics here: V is the vector vocabulary of an instruction set (simd/vec.h).

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "moe/base/half.h"

namespace moe {

inline constexpr int kPanelRows = 16;

/// Depth after which partial sums are added to the total, in every kernel: bounds the rounding
/// error of long sums (NMSE grows with the length of one run).
inline constexpr int kDepthBlock = 512;
/// Columns that share a scale where activations are int8. Gated hidden rows have heavy tails: one
/// scale per 512 columns gives an NMSE of 4e-4 there, one per 128 2e-4.
inline constexpr int kScaleBlock = 128;
/// No format's block is deeper.
inline constexpr int kDeepestBlock = 256;

/// The dot products that kernels are written for; the kind of activation row goes with it.
enum class Dot : uint8_t {
  kF32,   // a word is one float
  kBf16,  // a word is two bfloat16
  kU8S8,  // a word is four int8 with a scale per kScaleBlock; weights are unsigned bytes
  // Weights of 16 bits as sums of two bfloat16 numbers, activations as sums of three: five products
  // of pairs. A row has for every 32 columns sixteen words of the nearest numbers, sixteen of the
  // nearest to what they leave, and sixteen of the nearest to the rest.
  kBf16x2,
};
inline constexpr int kDotKinds = 4;

inline constexpr int depth_per_word(Dot dot) {
  return dot == Dot::kF32 ? 1 : dot == Dot::kU8S8 ? 4 : 2;
}
/// The numbers an activation is the sum of, and the products that one of it with a weight takes.
inline constexpr int parts_of(Dot dot) { return dot == Dot::kBf16x2 ? 3 : 1; }
inline constexpr int products_of(Dot dot) { return dot == Dot::kBf16x2 ? 5 : 1; }

/// What the scales of a format belong to.
enum class Scales : uint8_t {
  kNone,   // it has none
  kRow,    // a row; they stand in the panel's trailer
  kGroup,  // a row's group of kGroup columns; they stand in the block
};

/// How the groups of a range of activations are added where scales have two levels, a block's and
/// small integers (steps): the integers times steps first, which is exact, then the block's.
enum class Steps : uint8_t {
  kNone,      // one level: a float for each group
  kFloats,    // the sum fits the 24 bits of a float
  kHalves,    // the sum of half a range does; adding two of them rounds once
  kIntegers,  // the sum fits 32 bits
};

enum class Format : uint8_t {
#define MOE_FORMAT(id, ...) id,
#include "moe/quant/formats.inc"
#undef MOE_FORMAT
  kCount
};
inline constexpr int kFormatCount = static_cast<int>(Format::kCount);

/// The facts of a format that need no template.
struct FormatInfo {
  std::string_view name;
  int depth;
  int64_t block_bytes;
  int64_t trailer_bytes;
  Dot dot;
  double max_error;  // bound on NMSE of encode → decode for Gaussian weights
  void (*encode)(const float* rows, int64_t depth, std::byte* panel);
  float (*at)(const std::byte* panel, int64_t depth, int row, int64_t k);
  /// Bytes of one row's block in a GGUF file; 0 where GGUF has no such format.
  int64_t file_bytes;
  int group;      // columns that share a scale; 0 where groups have none
  bool has_zero;  // whether 0 is a value whatever the scale
  float largest;  // value that scales reach, where they end before what they are made of does
  void (*repack)(const std::byte* const* rows, int64_t blocks, std::byte* panel);
  bool cut_blocks;  // whether the last block of such bytes may hold columns beyond the matrix
  /// Rows that share a scale where a panel cannot tell it alone, and encode with scales that are
  /// given, one for each block: max|x| / max_value of those rows.
  int scale_rows;
  float max_value;
  void (*encode_scaled)(const float* rows, int64_t depth, const float* scales, std::byte* panel);
  /// nullptr where a value cannot be rounded under scales that stand already.
  float (*round)(std::byte* panel, int64_t depth, int row, int64_t k, float x);

  int64_t blocks(int64_t cols) const { return (cols + depth - 1) / depth; }
  /// Bytes of a panel, sixteen rows × cols, in whole cache lines.
  int64_t panel_bytes(int64_t cols) const {
    return (blocks(cols) * block_bytes + trailer_bytes + 63) / 64 * 64;
  }
};

const FormatInfo& format_info(Format format);
/// Throws ValueError that lists the known names.
Format parse_format(std::string_view name);

}  // namespace moe
