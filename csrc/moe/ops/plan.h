#pragma once
// The order in which experts see their tokens: a stable counting sort of an assignment.

#include <cstdint>
#include <vector>

namespace moe {

/// Sorted row i is token rows[i] in its slot slots[i]; expert e owns rows offsets[e] to
/// offsets[e+1].
struct Plan {
  std::vector<int64_t> offsets;      // [E + 1]
  std::vector<int32_t> rows, slots;  // [n], n = the assignment's slots that are not empty
};

/// Sorts `experts` [tokens, k] (-1: an empty slot, left out) by expert; rows of one expert keep the
/// order of (token, slot). Storage in `plan` is reused. Throws ValueError naming the token and slot
/// of an id that is no expert.
void make_plan(const int32_t* experts, int64_t tokens, int k, int64_t expert_count, Plan* plan);

/// Adds to counts [expert_count] how many of the slots of `experts` [tokens, k] each expert has,
/// and returns how many are not empty. Throws ValueError as make_plan does.
int64_t count_slots(const int32_t* experts, int64_t tokens, int k, int64_t expert_count,
                    int64_t* counts);

}  // namespace moe
