#pragma once
// What this instruction set can do at best: the limits that every other kernel is measured against.

#include <cstddef>
#include <cstdint>

#include "moe/quant/format.h"

namespace moe {

struct ProbeKernels {
  /// This instruction set's dot products, in independent chains that stay in registers, with
  /// operands from L1: the rate that no matrix product can exceed. One round is `operations[dot]`
  /// operations, a multiply-add counted as two. Returns a number that depends on every sum.
  float (*multiply[kDotKinds])(int64_t rounds) noexcept;
  int64_t operations[kDotKinds];

  /// Reads `bytes` bytes, a multiple of kProbeReadBytes, with the prefetches of a weight stream.
  /// Returns a number that depends on all of them.
  uint32_t (*read)(const std::byte* data, int64_t bytes) noexcept;
};

/// One turn of ProbeKernels::read.
inline constexpr int64_t kProbeReadBytes = 256;

}  // namespace moe
