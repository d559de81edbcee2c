#pragma once
// What the attention kernels are given and give back.

#include <cstdint>

namespace moe {

/// Keys per block of attention's online softmax. Block and segment boundaries are absolute
/// positions, so that a query's arithmetic is the same wherever its chunk of the prompt begins.
inline constexpr int kKeyBlock = 64;
/// Keys of a kernel's block at most.
inline constexpr int kWideBlock = 128;
/// Keys whose softmax is computed on its own and then merged: what one query is split into.
inline constexpr int kKeySegment = 512;

/// Query rows to be packed: `head_dim` columns at head[r], then `tail_dim` at tail[r] (MLA's rotary
/// part; null where tail_dim is 0), all times `scale`.
struct QueryRows {
  const float* const* head;
  const float* const* tail;
  int64_t head_dim, tail_dim;
  int64_t rows;
  float scale;
};

/// Positions [begin, end).
struct KeyRange {
  int64_t begin, end;
};

/// Query rows against one segment of one kv head's keys. Strides are in elements; pointers of keys,
/// values and biases are those of position 0.
struct AttentionCall {
  const void* keys;
  const void* values;
  int64_t key_stride, value_stride;
  int64_t key_dim, value_dim;
  int64_t begin, end;     // the segment; begin is a multiple of kWideBlock
  const void* next_keys;  // rows that are read after these, to be requested meanwhile, or null
  const void* next_values;
  int64_t rows;
  const float* queries;  // as `pack` wrote them, floats [rows to 16s][key_dim to 32s + 16] at most
  int64_t query_stride;  // key_dim rounded up to 16
  const KeyRange* visible;   // [rows]
  const float* const* bias;  // [rows], added to the scores; null: none. -inf masks
  const float* key_bias;     // the same for every row, or null
  const float* key_scales;   // int8 keys and values: a factor for each position, else null
  const float* value_scales;
  float softcap;       // c · tanh(score / c); 0: none
  float* max;          // [rows]: written
  float* sum;          // [rows]: written
  float* out;          // [rows][out_stride]: written
  int64_t out_width;   // value_dim rounded up to 16
  int64_t out_stride;  // at least that
  float* lane_sums;    // scratch [rows][16]
  float* key_block;    // scratch [kWideBlock][key_dim rounded up to 32]
  float* value_block;  // scratch [kWideBlock][out_width rounded up to 32]
};

/// An indexer's heads against keys [begin, end): out[j] = Σ_h weights[h] · max(0, queries[h] ·
/// k[j]).
struct IndexCall {
  const void* keys;  // of position 0
  int64_t key_stride, dim;
  int64_t begin, end;    // begin is a multiple of kKeyBlock
  const float* queries;  // as `pack` wrote them, floats [heads to 16s][dim to 32s] at most
  int64_t query_stride;  // dim rounded up to 16
  const float* weights;  // [heads]
  int64_t heads;
  float* out;        // of position 0
  float* key_block;  // scratch [kKeyBlock][dim rounded up to 32]
};

/// A softmax under way: the largest score, Σ exp(score − max), Σ exp(score − max) · value.
struct SoftmaxRow {
  float max, sum;
  float* out;
};

/// One row of n floats as it is kept; `scale` is written for int8 only.
using KeepRowFn = void (*)(const float* row, int64_t n, void* out, float* scale) noexcept;

/// Queries as `run` reads them; those of float32 are packed [rows][stride], stride at least
/// head_dim + tail_dim, zeros behind.
struct AttendKernel {
  void (*pack)(const QueryRows&, int64_t stride, float* packed) noexcept;
  void (*run)(const AttentionCall&) noexcept;
};

/// The same for an indexer; rows are its heads.
struct IndexKernel {
  void (*pack)(const QueryRows&, int64_t stride, float* packed) noexcept;
  void (*run)(const IndexCall&) noexcept;
};

/// Query heads of a kv head from which on the kernels for many are taken: a model's number,
/// whatever its batch, so that every row of a head is computed alike.
inline constexpr int64_t kManyHeads = 8;

struct AttentionKernels {
  /// By DType of keys and values, then int8.
  AttendKernel few_heads[4], many_heads[4];
  /// into += part, over `width` columns (a multiple of 16).
  void (*merge)(SoftmaxRow& into, const SoftmaxRow& part, int64_t width) noexcept;
  /// out = row.out / row.sum (0 where no key was seen); a sink is one more score without a value.
  void (*finish)(const SoftmaxRow& row, const float* sink, int64_t width, float* out) noexcept;
  IndexKernel index[3];  // by DType of the keys
  KeepRowFn keep[4];     // by DType, then int8
};

}  // namespace moe
