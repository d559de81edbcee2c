#pragma once
// What the operations mean: naive loops in double, written to be obviously right.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "moe/base/rng.h"
#include "moe/ops/router.h"

namespace moe::testing {

/// n numbers from a normal distribution.
inline std::vector<float> normal(int64_t n, uint64_t seed, double scale = 1.0) {
  std::vector<float> x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const auto at = static_cast<uint64_t>(2 * i);
    const double u = 1.0 - random_uniform(seed, at), v = random_uniform(seed, at + 1);
    x[static_cast<size_t>(i)] =
        static_cast<float>(scale * std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * M_PI * v));
  }
  return x;
}

struct RoutedToken {
  std::vector<int32_t> experts;
  std::vector<double> weights;
};

/// One token's routing; NaN free. `forbidden` and `select_bias` may be empty.
inline RoutedToken route_token(const std::vector<double>& logits, const RouterRule& rule,
                               const std::vector<double>& select_bias = {},
                               const std::vector<uint8_t>& forbidden = {}) {
  const double none = -std::numeric_limits<double>::infinity();
  const auto count = static_cast<int>(logits.size());
  const auto absent = [&](int e) { return !forbidden.empty() && forbidden[e] != 0; };

  double top = none, sum = 0.0;
  for (int e = 0; e < count; ++e) top = absent(e) ? top : std::max(top, logits[e]);
  for (int e = 0; e < count; ++e) sum += absent(e) ? 0.0 : std::exp(logits[e] - top);
  std::vector<double> score(logits.size()), choice(logits.size());
  for (int e = 0; e < count; ++e) {
    const double x = logits[e];
    switch (rule.score) {
      case Score::kSoftmax:
        score[e] = std::exp(x - top) / sum;
        break;
      case Score::kSigmoid:
        score[e] = 1.0 / (1.0 + std::exp(-x));
        break;
      case Score::kSqrtSoftplus:
        score[e] = std::sqrt(std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))));
        break;
      default:
        score[e] = x;
    }
    choice[e] = score[e] + (select_bias.empty() ? 0.0 : select_bias[e]);
  }

  // The order of the candidates: best first, then lower id.
  const auto best_first = [](const std::vector<double>& of, std::vector<int> which) {
    std::stable_sort(which.begin(), which.end(), [&](int a, int b) { return of[a] > of[b]; });
    return which;
  };
  std::vector<int> candidates;
  const int size = count / rule.groups;
  std::vector<double> group_score(rule.groups);
  for (int g = 0; g < rule.groups; ++g) {
    std::vector<double> members;
    for (int e = g * size; e < (g + 1) * size; ++e) {
      if (!absent(e)) members.push_back(choice[e]);
    }
    std::sort(members.rbegin(), members.rend());
    group_score[g] = members.empty() ? none : members[0];
    if (rule.group_score == GroupScore::kTop2 && members.size() > 1) group_score[g] += members[1];
  }
  std::vector<int> groups(rule.groups);
  std::iota(groups.begin(), groups.end(), 0);
  groups = best_first(group_score, groups);
  groups.resize(rule.top_groups);
  for (int e = 0; e < count; ++e) {
    const bool kept = std::find(groups.begin(), groups.end(), e / size) != groups.end();
    if (absent(e) || (!kept && !rule.group_fill_zero)) continue;
    if (!kept) choice[e] = 0.0;
    candidates.push_back(e);
  }
  candidates = best_first(choice, candidates);

  RoutedToken token;
  const int found = std::min<int>(rule.top_k, static_cast<int>(candidates.size()));
  double chosen_sum = 0.0, chosen_top = none;
  for (int s = 0; s < found; ++s) chosen_top = std::max(chosen_top, logits[candidates[s]]);
  for (int s = 0; s < found; ++s) {
    const int e = candidates[s];
    double w = score[e];
    if (rule.score == Score::kSoftmaxTopk) w = std::exp(logits[e] - chosen_top);
    if (rule.score == Score::kInputSigmoid) w = 1.0 / (1.0 + std::exp(-logits[e]));
    token.experts.push_back(e);
    token.weights.push_back(w);
    chosen_sum += w;
  }
  for (double& w : token.weights) {
    if (rule.normalize || rule.score == Score::kSoftmaxTopk) {
      w /= rule.normalize ? std::max(chosen_sum, double{rule.normalize_min}) : chosen_sum;
    }
    w *= rule.scale;
  }
  token.experts.resize(rule.top_k, -1);
  token.weights.resize(rule.top_k, 0.0);
  return token;
}

}  // namespace moe::testing
