#pragma once
// Experts with room for a fixed number of tokens.

#include <cstdint>

#include "moe/base/tensor_view.h"

namespace moe {

/// Takes tokens from experts that have more than `capacity` of them (Lepikhin et al. 2020, GShard,
/// algorithm 1; Fedus et al. 2021, Switch): first choices are placed before second ones, each in
/// the order of tokens; a slot of `experts` [tokens, k] without a place becomes -1. With `ranking`
/// [tokens, width] (each token's experts, best first, -1 at the end; no data: drop) it takes the
/// token's best expert that has a place and is none of its choices. Returns how many slots became
/// empty. Throws ValueError for an id that is no expert.
int64_t limit_capacity(int32_t* experts, int64_t tokens, int k, int64_t expert_count,
                       int64_t capacity, MatrixView<const int32_t> ranking);

/// Every expert chooses its `capacity` best tokens (Zhou et al. 2022, expert choice): chosen [T, E]
/// gets 1 where expert e takes token t, else 0. Scores [T, E]; ties go to the earlier token, NaN
/// ranks as -inf. Parallel over experts.
void choose_tokens(MatrixView<const float> scores, int64_t capacity, uint8_t* chosen);

}  // namespace moe
