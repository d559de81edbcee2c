#pragma once
// Attention of each query over the few cached rows that were selected for it.

#include <cstdint>

#include "moe/ops/attention.h"

namespace moe {

struct SparseAttentionInputs {
  HeadsView queries;         // [T, Hq, D], float32
  HeadsView query_tails;     // [T, Hq, R], float32: more columns of the queries, or none
  const HeadsView* sources;  // each [S_i, 1, D + R]: rows are counted through all of them
  int64_t source_count = 0;
  int64_t value_dim = 0;    // a row's first columns are its value
  const int32_t* selected;  // [T, width]: the rows of each query, in order; -1: none
  int64_t width = 0;
  float scale = 1.0f;            // of q · k
  const float* sinks = nullptr;  // [Hq]: a score without a value in every softmax
};

/// out [T, Hq, value_dim], contiguous: softmax attention over the selected rows, which are gathered
/// for each query; 0 without any. A row's bytes depend on that query and on its rows alone.
/// Throws ValueError for shapes that do not fit and for rows that are not there; names itself `op`.
void sparse_attention(const char* op, const SparseAttentionInputs& inputs, float* out);

}  // namespace moe
