#pragma once
// The functions that an instruction set provides, as constant tables: reading one runs no
// instruction that the processor may lack. All are single-threaded, noexcept, and take raw
// pointers.

#include <cstddef>
#include <cstdint>

#include "moe/kernels/attention.h"
#include "moe/kernels/probe.h"
#include "moe/kernels/recurrence.h"
#include "moe/kernels/routing.h"
#include "moe/kernels/rows.h"
#include "moe/quant/format.h"

namespace moe {

/// Activation rows as the dot products read them: words, then (kU8S8 only) a scale and the
/// integers' sum for every kScaleBlock columns and a sum for every kSumGroup; these again in 16
/// bits, and for every two. Padded with zeros to whole words.
struct ActivationLayout {
  int64_t words = 0;
  int64_t blocks = 0;  // of kScaleBlock columns (kU8S8)
  int64_t row_bytes =
      0;  // rows' distance: an odd number of cache lines, so that rows do not share sets
  int64_t scales_at = 0, block_sums_at = 0, group_sums_at = 0;  // bytes from the row's start
  int64_t short_sums_at = 0, pair_sums_at = 0;

  static ActivationLayout of(Dot dot, int64_t cols);
};
inline constexpr int kSumGroup = 16;

/// One call: every given row against two panels (thirty-two outputs). The depth may be cut at
/// multiples of kDepthBlock columns: calls for its parts, one after the other, add to the same out.
struct GemmCall {
  const std::byte* panels[2];  // gate and up of the same outputs, or two neighbours (or one twice)
  const std::byte* next[2];    // what is read after them: a hint, any address will do
  int64_t blocks;              // blocks along the depth, of the format's kDepth
  int64_t begin, end;          // those of this call; a part that begins at 0 writes, others add
  const std::byte* x;          // activation rows
  const ActivationLayout* layout;
  const int32_t* rows;  // which of them, or null for 0, 1, 2, …
  int64_t count;        // how many, at most kGemmRows
  float* out;           // [count][2 * kPanelRows]
};
using GemmFn = void (*)(const GemmCall&) noexcept;
inline constexpr int kGemmOutputs = 2 * kPanelRows;
inline constexpr int64_t kGemmRows = 256;

struct GemmKernels {
  /// [format][dot]; null where the format has no such path. [f][kF32] is the exact one.
  GemmFn run[kFormatCount][kDotKinds];
  /// Several rows of a call have to follow each other in memory (GemmCall::rows is null).
  bool rows_together = false;
};

struct ConvertKernels {
  /// Writes one activation row for `dot` from `cols` floats; null where no product reads such rows.
  void (*activations[kDotKinds])(const float* x, int64_t cols, const ActivationLayout&,
                                 std::byte* row) noexcept;
};

/// The nonlinearity of a feed-forward layer.
enum class Activation : uint8_t { kSilu, kGeluTanh, kGelu, kRelu, kRelu2, kIdentity, kSwigluOai };
struct ActivationSpec {
  Activation kind = Activation::kSilu;
  /// > 0: gate <= limit and |up| <= limit before the function (gpt-oss 7, DeepSeek-V4 10).
  float limit = 0.0f;
};

struct RowwiseKernels {
  /// `pairs` is [count][gate 16 | up 16]: act(gate) · up takes gate's place. The biases, of
  /// `outputs` (<= 16) each, may be null.
  void (*gate)(const ActivationSpec&, float* pairs, int64_t count, const float* gate_bias,
               const float* up_bias, int outputs) noexcept;
  /// The first `columns` of rows [count][kGemmOutputs] to `out`, rows `stride` floats apart; where
  /// they are `far` from being read again, past the caches, which else would fetch them first.
  void (*write)(const float* rows, int64_t count, int columns, float* out, int64_t stride,
                bool far) noexcept;
  /// x[i] = act(x[i])
  void (*activate)(const ActivationSpec&, float* x, int64_t n) noexcept;
  /// out[i] += weight * x[i]
  void (*add_scaled)(float* out, const float* x, float weight, int64_t n) noexcept;
  /// out[i] = scale * x[i]
  void (*scale)(float* out, const float* x, float scale, int64_t n) noexcept;
};

struct KernelTable {
  const char* name;
  const GemmKernels* gemm;
  const ConvertKernels* convert;
  const RowwiseKernels* rowwise;
  const RouterKernels* router;
  const NormKernels* norm;
  const RopeKernels* rope;
  const SampleKernels* sample;
  const AttentionKernels* attention;
  const RecurrenceKernels* recurrence;
  const ProbeKernels* probe;
};

/// The table in use: MOEKIT_ISA's, else the last one of isas.cmake that this machine runs. Throws
/// CannotRun if MOEKIT_ISA names an unknown one or one that this machine cannot run.
const KernelTable& kernels();
/// Switches to the named table (tests walk through all of them). Throws as kernels() does.
void set_isa(const char* name);
/// Every compiled table, worst first; `count` receives how many.
const KernelTable* const* all_kernels(int* count);
/// Whether this machine can run it.
bool can_run(const KernelTable& table);

}  // namespace moe
