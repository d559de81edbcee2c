#pragma once
// The last step of a token's way: the next token from its logits.

#include <cstdint>

#include "moe/base/tensor_view.h"

namespace moe {

/// Filters in this order, each with its neutral value; what is left is drawn from by probability.
struct SampleRule {
  double temperature = 0.0;  // 0: the largest logit, ties to the lower id
  int64_t top_k = 0;         // 0: all. Logits tied with the k-th stay
  double top_p = 1.0;        // the most probable tokens whose probabilities first reach top_p
  double min_p = 0.0;        // at least min_p times the largest probability
};

/// ids[b] from logits [B, V]. The draw takes the token where the cumulated probability, in the
/// order of ids, passes random_uniform(seeds[b], steps[b]): nothing else of the batch, no thread
/// and no order of evaluation has a part in it. Throws ValueError for a rule out of range and for a
/// row that holds NaN or +inf or only -inf. Parallel over rows.
void sample(MatrixView<const float> logits, const SampleRule& rule, const uint64_t* seeds,
            const uint64_t* steps, int64_t* ids);

}  // namespace moe
