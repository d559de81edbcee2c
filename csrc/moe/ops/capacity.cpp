#include "moe/ops/capacity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "moe/base/check.h"
#include "moe/base/parallel.h"

namespace moe {

int64_t limit_capacity(int32_t* experts, int64_t tokens, int k, int64_t expert_count,
                       int64_t capacity, MatrixView<const int32_t> ranking) {
  const auto check = [&](int32_t expert, int64_t token, const char* what) {
    MOE_CHECK(expert >= -1 && expert < expert_count, "[limit_capacity] token ", token, " has ",
              what, " ", expert, "; -1 (empty) or 0 to ", expert_count - 1, " is required");
  };
  for (int64_t i = 0; i < tokens * k; ++i) check(experts[i], i / k, "expert");
  for (int64_t i = 0; i < ranking.rows * ranking.cols; ++i) {
    check(ranking.data[i], i / ranking.cols, "ranked expert");
  }
  std::vector<int64_t> placed(static_cast<size_t>(expert_count), 0);
  // The choices as they came: a later choice of the same token is no substitute for an earlier one.
  const std::vector<int32_t> choices(experts, experts + tokens * k);
  int64_t dropped = 0;
  const auto substitute = [&](int64_t token) -> int32_t {
    if (ranking.data == nullptr) return -1;
    for (int64_t r = 0; r < ranking.cols; ++r) {
      const int32_t candidate = ranking.row(token)[r];
      if (candidate < 0 || placed[static_cast<size_t>(candidate)] >= capacity) continue;
      const auto is_mine = [&](const int32_t* row) {
        return std::find(row, row + k, candidate) != row + k;
      };
      if (!is_mine(choices.data() + token * k) && !is_mine(experts + token * k)) return candidate;
    }
    return -1;
  };
  for (int slot = 0; slot < k; ++slot) {
    for (int64_t token = 0; token < tokens; ++token) {
      int32_t& expert = experts[token * k + slot];
      if (expert < 0) continue;
      if (placed[static_cast<size_t>(expert)] >= capacity) expert = substitute(token);
      if (expert < 0) {
        ++dropped;
      } else {
        ++placed[static_cast<size_t>(expert)];
      }
    }
  }
  return dropped;
}

void choose_tokens(MatrixView<const float> scores, int64_t capacity, uint8_t* chosen) {
  const int64_t tokens = scores.rows, experts = scores.cols;
  MOE_CHECK(capacity >= 0, "[route_expert_choice] capacity is ", capacity,
            "; 0 or more is required");
  std::fill_n(chosen, tokens * experts, uint8_t{0});
  const int64_t count = std::min(capacity, tokens);
  if (count == 0 || experts == 0) return;
  struct Candidate {
    float score;
    int64_t token;
  };
  const auto threads = static_cast<size_t>(std::min<int64_t>(experts, num_threads()));
  std::vector<std::vector<Candidate>> room(threads);
  for (auto& candidates : room) candidates.resize(static_cast<size_t>(tokens));
  TaskQueue queue;
  const auto work = [&](Team& team) {
    auto& candidates = room[static_cast<size_t>(team.index)];
    for (int64_t e = queue.take(); e < experts; e = queue.take()) {
      for (int64_t t = 0; t < tokens; ++t) {
        const float score = scores.row(t)[e];
        candidates[static_cast<size_t>(t)] = {
            std::isnan(score) ? -std::numeric_limits<float>::infinity() : score, t};
      }
      const auto better = [](const Candidate& a, const Candidate& b) {
        return a.score != b.score ? a.score > b.score : a.token < b.token;
      };
      std::nth_element(candidates.begin(), candidates.begin() + count - 1, candidates.end(),
                       better);
      for (int64_t i = 0; i < count; ++i) {
        chosen[candidates[static_cast<size_t>(i)].token * experts + e] = 1;
      }
    }
  };
  parallel(static_cast<int>(threads), work);
}

}  // namespace moe
