#include "moe/ops/plan.h"

#include "moe/base/check.h"

namespace moe {

int64_t count_slots(const int32_t* experts, int64_t tokens, int k, int64_t expert_count,
                    int64_t* counts) {
  int64_t n = 0;
  for (int64_t i = 0; i < tokens * k; ++i) {
    const int32_t expert = experts[i];
    if (expert == -1) continue;
    MOE_CHECK(expert >= 0 && expert < expert_count, "[plan] token ", i / k, ", slot ", i % k,
              " has expert ", expert, "; -1 (empty) or 0 to ", expert_count - 1, " is required");
    ++counts[expert];
    ++n;
  }
  return n;
}

void make_plan(const int32_t* experts, int64_t tokens, int k, int64_t expert_count, Plan* plan) {
  MOE_CHECK(tokens <= INT32_MAX, "[plan] the assignment has ", tokens, " tokens; at most ",
            INT32_MAX, " are possible");
  plan->offsets.assign(static_cast<size_t>(expert_count) + 1, 0);
  int64_t* counts = plan->offsets.data() + 1;
  const int64_t n = count_slots(experts, tokens, k, expert_count, counts);
  // counts[e] becomes e's next free row, and ends as e's end: offsets[e + 1].
  int64_t start = 0;
  for (int64_t e = 0; e < expert_count; ++e) {
    const int64_t count = counts[e];
    counts[e] = start;
    start += count;
  }
  plan->rows.resize(static_cast<size_t>(n));
  plan->slots.resize(static_cast<size_t>(n));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int s = 0; s < k; ++s) {
      const int32_t expert = experts[t * k + s];
      if (expert == -1) continue;
      const auto at = static_cast<size_t>(counts[expert]++);
      plan->rows[at] = static_cast<int32_t>(t);
      plan->slots[at] = s;
    }
  }
}

}  // namespace moe
