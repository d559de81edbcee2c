#pragma once
// Softmax attention over cached keys and values, grouped-query and latent alike.

#include <cstdint>

#include "moe/base/dtype.h"

namespace moe {

/// Rows [tokens][heads][dim], the last dimension contiguous, the others any strides apart.
struct HeadsView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t tokens = 0, heads = 0, dim = 0;
  int64_t token_stride = 0, head_stride = 0;
  /// Set: `data` are int8, and row (t, h) is times scales[t + h · scale_head_stride]. Whatever
  /// `dtype` says.
  const float* scales = nullptr;
  int64_t scale_head_stride = 0;
};

struct AttentionInputs {
  HeadsView queries;  // [T, Hq, D], float32
  HeadsView
      query_tails;  // [T, Hq, R], float32: more columns of the queries (MLA's rotary part), or none
  HeadsView keys;   // [S, Hk, D + R]; Hq is a multiple of Hk
  HeadsView values;      // [S, Hk, Dv]; may lie inside the keys (MLA: their first L columns)
  float scale = 1.0f;    // of q · k
  float softcap = 0.0f;  // c > 0: scores become c · tanh(score / c) (Grok-1, Gemma 2)

  /// Query i stands at position first_position + i; key j at position j.
  int64_t first_position = 0;
  bool causal = true;  // sees keys j <= position
  int64_t window = 0;  // > 0: only keys j > position - window (Mistral)
  int64_t chunk = 0;   // > 0: only keys with j / chunk == position / chunk (Llama 4)

  const float* sinks = nullptr;  // [Hq]: a score without a value in every softmax (gpt-oss)
  /// Added to the scores; -inf masks. Keys are contiguous; stride 0 repeats over queries or heads.
  const float* bias = nullptr;
  int64_t bias_head_stride = 0, bias_query_stride = 0;
  const bool* key_mask = nullptr;  // [S]: false hides the key from every query (padding)
};

/// out [T, Hq, Dv], contiguous. A query that sees no key gives 0; an invisible key contributes
/// nothing, whatever it holds. A row's bytes depend on that query, on the keys it sees and their
/// positions, and on the instruction set: not on the other queries, later keys or the threads.
/// Vaswani et al. 2017, section 3.2; DeepSeek-V2 (2024), section 2.1 for the latent form.
/// Throws ValueError for shapes that do not fit; names itself `op` in messages. Thread-safe.
void attention(const char* op, const AttentionInputs& inputs, float* out);

}  // namespace moe
