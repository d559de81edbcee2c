#include "moe/quant/format.h"

#include <limits>

#include "moe/base/check.h"
#include "moe/quant/formats.h"

namespace moe {

namespace {

template <class F>
constexpr FormatInfo info_of(std::string_view name, double max_error) {
  FormatInfo info{};
  info.name = name;
  info.depth = F::kDepth;
  info.block_bytes = F::kBlockBytes;
  info.trailer_bytes = F::kTrailerBytes;
  info.dot = F::kDot;
  info.max_error = max_error;
  info.encode = &F::encode;
  info.at = &F::at;
  info.has_zero = true;
  if constexpr (requires { F::kGroup; }) info.group = F::kGroup;
  if constexpr (requires { F::kHasZero; }) info.has_zero = F::kHasZero;
  info.largest = std::numeric_limits<float>::max();
  if constexpr (requires { F::kLargest; }) info.largest = F::kLargest;
  if constexpr (requires { F::kFileBytes; }) {
    info.file_bytes = F::kFileBytes;
    info.repack = &F::repack;
  }
  if constexpr (requires { F::kCutBlocks; }) info.cut_blocks = F::kCutBlocks;
  if constexpr (requires { F::kScaleRows; }) {
    info.scale_rows = F::kScaleRows;
    info.max_value = F::kMaxValue;
    info.encode_scaled = &F::encode_scaled;
  }
  if constexpr (requires { &F::round; } && !requires { F::kGridPoints; }) info.round = &F::round;
  return info;
}

constexpr FormatInfo kFormats[] = {
#define MOE_FORMAT(id, name, F, max_error) info_of<F>(name, max_error),
#include "moe/quant/formats.inc"
#undef MOE_FORMAT
};

}  // namespace

const FormatInfo& format_info(Format format) { return kFormats[static_cast<int>(format)]; }

Format parse_format(std::string_view name) {
  if (name == "int4_g128") name = "int4";  // the group that int4 has anyway
  std::string known;
  for (int i = 0; i < kFormatCount; ++i) {
    if (kFormats[i].name == name) return static_cast<Format>(i);
    known += known.empty() ? "" : ", ";
    known += kFormats[i].name;
  }
  throw ValueError(message("[format] '", name, "' is not a weight format; known: ", known));
}

}  // namespace moe
